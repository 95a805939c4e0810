"""Two ranks against plain torch, and a resumed run against one that never stopped. Many cases per launch."""

from __future__ import annotations

import pytest

from tests.multi_process import data_faults, gradients, mixed, plans, resume, shared_rows, stored_codes, unigame
from tests.multi_process.launcher import run_ranks
from tests.multi_process.tiny_run import write_data, write_edits, write_families, write_long_world, write_pictures

pytestmark = pytest.mark.ranks

REDRAWN = [case for case in unigame.CASES if case.startswith("redraw")]
ALONE = ["alternating_lora_accumulation", "simultaneous_checkpointing", "simultaneous_zero2"]
OWN = [case for case in unigame.CASES if case not in [*REDRAWN, *ALONE]]
KINDS = [
    *(
        "full",
        "lora_checkpointing",
        "dora_checkpointing",
        "zero2",
        "offloaded_optimizer",
        "unimrg_round_robin",
        "unimrg_sampled",
    ),
    *("openuni", "emu3", "emu3_5_lora_checkpointing", "chameleon", "show_o", "harmon", "bagel", "blip3o_next"),
    *("aia", "packed", "balance", "dealt_paired"),
]
"""Steps of every kind and of every family."""
STEPS = [case for case in gradients.CASES if case not in KINDS]
HALF = len(STEPS) // 2
LAUNCHES = {
    "steps of every kind on two ranks equal plain torch": ("gradients", 2, KINDS),
    "every step on two ranks equals plain torch: first half": ("gradients", 2, STEPS[:HALF]),
    "every step on two ranks equals plain torch: second half": ("gradients", 2, STEPS[HALF:]),
    "every bf16 step on two ranks equals plain mixed precision": ("mixed", 2, list(mixed.CASES)),
    "one rank runs the same code": ("gradients", 1, ["accumulation", "lora_checkpointing", "zero2"]),
    "two groups of two ranks gather weights inside each": ("gradients", 4, list(gradients.GROUPS)),
    "the plan of every family equals the engine on two ranks": ("plans", plans.RANKS, list(plans.CASES)),
    "both players of some games equal plain torch on two ranks": ("unigame", 2, ALONE),
    "both players of the game equal plain torch on two ranks": ("unigame", 2, [*OWN, "uneven", "cost"]),
    "an attack on what the learner has drawn equals plain torch on two ranks": ("unigame", 2, [*REDRAWN, "combined"]),
    "one rank plays the same game": ("unigame", 1, ALONE),
    "two times two ranks that share their rows equal plain torch": ("shared_rows", 4, ["emu3_aia", "counted_once"]),
    "two ranks read the rows of every family, and play, as one does": (
        "shared_rows",
        2,
        ["families", "janus_balance_independent_turns", *shared_rows.GAMES],
    ),
    "stored codes train as encoded pictures do": ("stored_codes", 2, list(stored_codes.CASES)),
    "one rank that writes slowly, or cannot write, is waited for, or ends the run of all": ("saving", 2, ["saving"]),
    "data that one of two ranks cannot fetch": ("data_faults", 2, list(data_faults.CASES)),
    "resume equals an uninterrupted run to the last bit": ("resume", 2, [*resume.CASES, "evaluation", "gathered once"]),
}
COMPARED = ("steps of every kind", "both players of some games", "two times two ranks", "two ranks read the rows")
"""How launches begin whose collectives torch compares one by one. In all others a rank program compares them after each case
(`collectives.py`), which takes a fraction of the time."""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = write_families(tmp_path_factory.mktemp("tiny"))
    write_data(folder / "shards")
    write_edits(folder / "edits")
    write_pictures(folder / "pictures")
    write_long_world(folder)
    return folder


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", LAUNCHES)
def test_launch(home, name):
    program, ranks, cases = LAUNCHES[name]
    compared = name.startswith(COMPARED)
    said = run_ranks(f"tests.multi_process.{program}", ranks, home, *cases, timeout=580, compare_collectives=compared)[0]
    reported = [line.split(":")[0] for line in said.splitlines()]
    assert [case for case in cases if case not in reported] == []
