"""The measurements that the documents report: name -> what follows `python -m tests.benchmarks.`.

Each has a file docs/measurements/NAME.json once it was made, and a place on a page (`write_page.py`).
"""

from __future__ import annotations

RUNS = {
    "balance": "balance",
    "packed": "packed --rows 8 16 --steps 3",
    "packed_two_ranks": "packed --ranks 2 --rows 8 16 --steps 3",
    "overhead_lora": "overhead --rounds 5 --warmup 3",
    "overhead_full": "overhead --rounds 5 --warmup 3 --train full",
    "unigame": "unigame --ranks 1 --ds-config zero2 --sampled-steps 5 --steps 5 --tokens 64",
    "unigame_256": "unigame --ranks 1 --ds-config zero2 --sampled-steps 0 --tokens 256",
    "unigame_two_ranks": "unigame --sampled-steps 1 --steps 5 --tokens 64",
    "photographs": "photographs --samples 96 --rounds 5",
    "families": "families --steps 4 --warmup 2",
    "replay": "replay",
    "merge": "merge",
    "stored_codes": "stored_codes",
    "chunked_loss": "chunked_loss --width 64 512",
    "attention_taps": "attention_taps --lengths 256 576 1576",
    "attention_taps_wide": "attention_taps --variants base tapped --width 1024 --layers 4 --lengths 1576",
    "unimrg": "unimrg",
    "drawing": "drawing",
    "saves": "saves --megabytes 12.6 600",
    "loading": "loading --gigabytes 4 --ranks 2",
    "export_memory": "export_memory --vocabulary 100000",
    "annotate": "annotate --rounds 1",
    "loader": "loader --rounds 3",
}
