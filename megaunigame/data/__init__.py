"""From tar shards to micro-batches.

Read in this order: `shards/` (where samples lie: `manifest`, `table`, `index`; `remote` and `cache` when that is a URL),
`sources/` (`base`: what a source is; `order`, `filters` and `index`: one data set as an endless source; `webdataset`: tars
without an index; `blend`: several sources as one; `opening`: from a recipe to a stream), `decode` (bytes to tensors), and
`loading/` (`positions`: which rank takes which sample; `bad_samples`; `stream`, which puts them together; `packing`, which
carries its micro-batches from the loader's workers).
"""
