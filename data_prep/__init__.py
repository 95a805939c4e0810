"""Makes annotations, photographs and rendered scenes into WebDataset shards (`python -m data_prep --help`)."""
