"""Writes docs/scale.md and its plot from tests/scale/results.json, which tests/scale/measure.py makes.

python -m tests.scale.write_page
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from megaunigame.monitoring.plots import GRID, INK, MUTED, style
from tests.scale.measure import GAME, RESULTS
from tests.scale.replayed import DRY_RUN, MERGE, RESUME, SAVE, START, STEP

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE, PLOT = REPOSITORY / "docs" / "scale.md", REPOSITORY / "docs" / "images" / "scale.svg"
COLORS = ("#2f6f9f", "#c1622d", "#4f8a4c", "#8a5a9f", "#7b8794")
Row = dict[str, Any]

HEAD = """# Up to 1,024 ranks

This page is written by `python -m tests.scale.write_page` from `tests/scale/results.json`, which `python -m
tests.scale.measure` makes on a CPU; do not edit it. `tests/scale/test_scale.py` replays some of its rows.

No network was there. One process runs as rank r of W: trainer, DeepSpeed's engine and the checkpoints are those of a run,
and the process group (`tests/scale/group.py`) records each collective and answers as if every rank had what this one has. So
numbers and sizes of messages are exact, and nothing here is a time. The model is the tiny Janus in bf16 under ZeRO-3, with
weights below 1,000 elements kept whole, as `stage3_param_persistence_threshold` keeps small ones of large models. Bytes are
those of the larger side of a message on this rank: all that it gathers, all that it reduces.
"""
GROWS = """
Found by this replay and removed: at the start every rank told all others each setting of its recipe, to find nodes that
differ. Now they compare a hash, and tell the settings where it differs.

Nothing grows with the square of the number of ranks. NCCL's own buffers, channels and times are not seen here.
"""


def page(results: dict[str, Any]) -> str:
    """The page as Markdown."""
    rows = results["tiny"]
    ranks = sorted({row["ranks"] for row in rows})
    first = [row for row in rows if row["rank"] == 0]
    cases = list(dict.fromkeys(row["case"] for row in first))
    at = {(row["case"], row["ranks"]): row for row in first}
    other = {row["ranks"]: row for row in rows if row["rank"]}
    titles = [f"W = {count:,}" for count in ranks]

    def line(case: str, value: Callable[[Row], str]) -> list[str]:
        return [value(at[case, count]) for count in ranks]

    steps = [[case, _kinds(at[case, ranks[0]], STEP), *line(case, lambda row: str(_calls(row, STEP)))] for case in cases]
    moved = [[case, *line(case, lambda row: short(_bytes(row, STEP)))] for case in cases]
    games = [case for case in cases if MERGE in at[case, ranks[0]]["phases"]]
    merges = [[case, *line(case, _merge)] for case in games]
    starts = [
        ["start-up", _kinds(at[GAME, ranks[0]], START), *line(GAME, lambda row: str(_calls(row, START)))],
        ["dry run", _kinds(at[GAME, ranks[0]], DRY_RUN), *line(GAME, lambda row: str(_calls(row, DRY_RUN)))],
    ]
    saves = [
        ["files", *line(GAME, lambda row: f"{row['files']:,}")],
        ["collectives", *line(GAME, lambda row: str(_calls(row, SAVE)))],
        ["metadata calls of rank 0", *line(GAME, lambda row: f"{row['metadata'][SAVE]:,}")],
        ["metadata calls of rank 1", *(f"{other[count]['metadata'][SAVE]:,}" for count in ranks)],
        ["metadata calls of rank 0 in a resumed start", *line(GAME, lambda row: f"{row['metadata'][RESUME]:,}")],
    ]
    same = all(row["same order"] for row in other.values())
    order = "makes the same calls in the same order as rank 0" if same else "does NOT make the same calls as rank 0"
    parts = [
        HEAD,
        "![Collectives of a step, and bytes of a rank, by number of ranks](images/scale.svg)\n",
        "## Collectives of a step\n",
        _table(["objectives", "kinds at W = 2", *titles], steps),
        f"Rank 1 {order}, start-up, dry run, steps and merge included ({GAME}).\n",
        "## Bytes of a rank in a step\n",
        _table(["objectives", *titles], moved),
        "## A merge of the hard buffer\n\nWhat a step with a merge has more than one without:\n",
        _table(["objectives", *titles], merges),
        "The pictures that change rank travel in the all-to-all. Here every rank has the same losses, so that nearly none do; "
        "`tests/benchmarks/merge.py` counts them.\n",
        "## Start-up\n\nCollectives, all of them independent of the number of ranks:\n",
        _table(["", "kinds", *titles], starts),
        "The ranks meet through a store: each writes its name, rank 0 asks for each name until it is there, and says once that "
        "all are. Then a rank sends two requests per beat.\n",
        "## A checkpoint\n",
        _table([GAME, *titles], saves),
        "## 34 billion parameters\n\n"
        "Exact for the shape of `emu3_5_34b_unigame`, from its modules on the meta device. One gather of all weights, and what "
        "rank 0 holds and writes:\n",
        _table(
            [
                "trained",
                "W",
                "tensors",
                "bytes gathered",
                "of these padding",
                "weights and optimizer",
                "checkpoint",
                "merge table",
            ],
            [_large(row) for row in results["large"]],
        ),
        "A pass of the learner gathers all weights it uses twice (forward; recomputation and backward), and reduces the "
        "gradients of those that are trained. How many passes a step has: [Step times](performance.md).\n",
        _growing(at, ranks, results),
    ]
    return "\n".join(parts)


def _growing(at: dict[tuple[str, int], Row], ranks: Sequence[int], results: dict[str, Any]) -> str:
    few, many = at[GAME, ranks[0]], at[GAME, ranks[-1]]
    extra = _bytes(many, STEP) / _bytes(few, STEP) - 1
    large = next(row for row in results["large"] if row["ranks"] == ranks[-1])
    table = f"{short(_bytes(many, MERGE) - _bytes(many, STEP))} (tiny), {short(large['table'])} (34 B recipe)"
    padded = f"{extra:.0%} of a step of the tiny model; {short(large['padding'])} of the 34 B shape"
    beats, looks = results["beats"][str(ranks[-1])], many["metadata"]
    rows = [
        ["padding: each gathered weight ends at a multiple of W elements", "all", padded],
        ["table of losses of a merge: 4 bytes for each record and candidate of any rank", "all", table],
        ["peak memory of each rank, 8 bytes, in the sum that every step makes", "all", f"{8 * ranks[-1]:,} bytes"],
        ["names, sizes and hashes of the files of a checkpoint", "0", f"{short(_bytes(many, SAVE))} in a save"],
        ["a look at each file", "0", f"{looks[SAVE]:,} metadata calls in a save, {looks[RESUME]:,} in a resumed start"],
        ["beats, every 2 s", "0", f"{beats['keys']:,} keys in one request, {short(beats['bytes'])}"],
        ["host names at the start; agreements, and errors where there are some", "all", "a short text of each rank"],
    ]
    what = _table(["what", "on which rank", f"how much at W = {ranks[-1]:,}"], rows)
    return f"## What grows with the number of ranks\n\n{what}{GROWS}"


def _large(row: Row) -> list[str]:
    numbers = [short(row[name]) for name in ("gathered", "padding", "states", "saved", "table")]
    return [row["trained"], f"{row['ranks']:,}", f"{row['gathers']:,}", *numbers]


def _merge(row: Row) -> str:
    calls, plain = row["phases"][MERGE]["calls"], row["phases"][STEP]["calls"]
    more = {kind: calls[kind] - plain.get(kind, 0) for kind in calls if calls[kind] != plain.get(kind, 0)}
    size = short(_bytes(row, MERGE) - _bytes(row, STEP))
    return f"{', '.join(f'{number} {kind}' for kind, number in more.items())}; {size}"


def _calls(row: Row, phase: str) -> int:
    return sum(row["phases"][phase]["calls"].values())


def _bytes(row: Row, phase: str) -> int:
    return sum(row["phases"][phase]["bytes"].values())


def _kinds(row: Row, phase: str) -> str:
    return ", ".join(f"{number} {kind}" for kind, number in row["phases"][phase]["calls"].items())


def _table(titles: list[str], rows: list[list[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def short(size: float) -> str:
    """1.23 MB."""
    for factor, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(size) >= factor:
            return f"{size / factor:.3g} {unit}" if size < 999.5 * factor else f"{size / factor:.0f} {unit}"
    return f"{size:.0f} B"


def plot(results: dict[str, Any]) -> Figure:
    """Left: collectives of a step. Right: bytes of a rank, relative to two ranks."""
    first = [row for row in results["tiny"] if row["rank"] == 0]
    cases = list(dict.fromkeys(row["case"] for row in first))
    figure = Figure(figsize=(9.0, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    by_calls: dict[tuple[int, ...], list[str]] = {}
    for case in cases:
        by_calls.setdefault(tuple(_calls(row, STEP) for row in first if row["case"] == case), []).append(case)
    ranks = sorted({row["ranks"] for row in first})
    lowest = min(by_calls)
    for (calls, names), color in zip(by_calls.items(), COLORS, strict=False):
        left.plot(ranks, calls, "o-", color=color, markersize=3.5, linewidth=1.6)
        place = (0, -13 if calls == lowest else 5)  # two lines may be close to each other
        label = f"{'; '.join(names)}: {calls[-1]}"
        left.annotate(label, (ranks[0], calls[0]), place, textcoords="offset points", fontsize=8, color=color)
    game = [row for row in first if row["case"] == GAME]
    ranks = [row["ranks"] for row in game]
    series = {
        "a step": [_bytes(row, STEP) for row in game],
        "start-up": [_bytes(row, START) for row in game],
        "table of a merge": [_bytes(row, MERGE) - _bytes(row, STEP) for row in game],
        "reports of a save, rank 0": [_bytes(row, SAVE) for row in game],
    }
    heights = dict.fromkeys(series, -3) | {"start-up": 4, "a step": -10}
    for (name, sizes), color in zip(series.items(), COLORS, strict=False):
        right.plot(ranks, sizes, "o-", color=color, markersize=3.5, linewidth=1.6)
        place = (5, heights[name])
        right.annotate(name, (ranks[-1], sizes[-1]), place, textcoords="offset points", fontsize=8, color=color)
    right.set_yscale("log")
    right.set_xlim(ranks[0] / 1.5, ranks[-1] * 12)
    left.set_ylim(0, 1.15 * max(_calls(row, STEP) for row in first))
    for axes, title in ((left, "Collectives of a step"), (right, f"Bytes of a rank, {GAME}")):
        axes.set_xscale("log", base=2)
        axes.set_xticks(ranks, [f"{count:,}" for count in ranks])
        axes.set_xlabel("ranks", fontsize=8, color=MUTED)
        style(axes, title, "y")
    right.grid(axis="y", color=GRID, linewidth=0.8)
    right.title.set_color(INK)
    return figure


def main() -> None:
    results = json.loads(RESULTS.read_text())
    PAGE.write_text(page(results), encoding="utf-8")
    with rc_context({"svg.hashsalt": "scale", "svg.fonttype": "none"}):
        plot(results).savefig(PLOT, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
