"""Makes annotations, photographs and rendered scenes into WebDataset shards (`megaunigame prepare --help`)."""
