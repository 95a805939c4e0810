"""From tar shards to micro-batches.

Read in this order: `shards/` (where samples are: `manifest`, `table`, `index`; `remote` and `cache` for a URL), `sources/`
(`base`: what a source is; `order`, `filters` and `index`: one data set as an endless source; `webdataset`: tars without an
index; `blend`: several sources as one; `opening`: from a recipe to a stream), `decode` (bytes to tensors), and `loading/`
(`positions`: which rank takes which sample; `bad_samples`; `stream`: micro-batches; `packing` and `blocks`: send them from the
loader's workers).
"""
