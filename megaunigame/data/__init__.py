"""From tar shards to micro-batches: index, order, slots, stream, decoding.

Read in this order: `shard_table` and `shards` (where samples lie), `order` (in which order they are visited), `slots`
(which rank takes which), `decode` (bytes to tensors), `bad_samples`, and `stream`, which puts them together.
"""
