"""Numbers as they are printed."""

from __future__ import annotations

from megaunigame.planning.text import describe
from megaunigame.planning.units import GIB, MIB, between, gib, seconds, tera


def test_units_leave_no_number_without_digits():
    assert [gib(size) for size in (0, 77, MIB, 0.1 * GIB, 1234.5 * GIB)] == [
        "0",
        "0.08 KiB",
        "1.00 MiB",
        "0.10 GiB",
        "1234.50 GiB",
    ]
    assert [tera(n) for n in (0, 2.345e6, 12.344e12, 1206.4e12, 31234e12)] == [
        *("0", "0.002345 GFLOP", "12.34 TFLOP", "1,206 TFLOP", "31,234 TFLOP")
    ]
    assert [seconds(value) for value in (0, 0.0008114, 51.12, 1234)] == ["0", "0.811 ms", "51.1 s", "1,234 s"]


def test_a_range_is_one_number_where_both_ends_look_alike():
    assert between(seconds(51.11), seconds(51.12)) == "51.1 s"
    assert between(seconds(51.1), seconds(60.2)) == "51.1 to 60.2 s"
    assert between(seconds(0.08), seconds(0.2)) == "80 ms to 0.2 s"


def test_a_plan_is_printed_in_the_units_of_a_profile(full, game):
    for plan in (full, game):
        text = describe(plan, ["fits"])
        assert " GB" not in text.replace("GB/s", "") and " 0.00 " not in text and " MB" not in text
        assert f"shape: {plan.source}" in text.splitlines()[1]
    assert "for players aside" not in describe(full, []) and "updated weights gathered" in describe(full, [])
