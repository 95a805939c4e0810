"""From tar shards to micro-batches: index, order, slots, stream, decoding.

Read in this order: `manifest`, `shard_table` and `shards` (where samples lie; `remote` and `shard_cache` when that is behind
a URL), `order` (in which order they are visited), `filters` and `indexed` (one data set as an endless source), `blend` (several
of them), `pipe` (tars without an index), `source` and `opening` (streams and their cursors), `slots` (which rank takes which
sample), `decode` (bytes to tensors), `bad_samples`, and `stream`, which puts them together; `packing` carries its micro-batches
from the loader's workers.
"""
