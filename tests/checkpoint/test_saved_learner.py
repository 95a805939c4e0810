"""The learner's files: ranges written by any number of ranks are read by any other; what is damaged or hostile is refused."""

from __future__ import annotations

import ast
import json
import pickle
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import megaunigame.checkpoint
from megaunigame.checkpoint.agreement import on_every_rank
from megaunigame.checkpoint.learner_files import check_parameters
from megaunigame.checkpoint.saved_learner import DESCRIPTION, FILE, SavedLearner, as_json
from megaunigame.engine.optimizer_slices import Layout
from megaunigame.errors import CheckpointError
from megaunigame.storage import pieces
from megaunigame.storage.pending import PendingFile
from tests.worlds import on_ranks

KINDS = ("master", "exp_avg", "exp_avg_sq")
shapes = st.lists(st.lists(st.integers(1, 7), min_size=1, max_size=3).map(tuple), min_size=1, max_size=5)
ranks = st.integers(1, 9)


def layouts_of(shapes: list[tuple[int, ...]], ranks: int, stage: int) -> dict[str, Layout]:
    """As the engine divides parameters: each by itself (3), or all of a group end to end (2), padded to equal slices."""
    sizes = [torch.Size(shape).numel() for shape in shapes]
    if stage == 3:
        return {f"p{n}": Layout(shape, 0, -(-size // ranks)) for n, (shape, size) in enumerate(zip(shapes, sizes, strict=True))}
    slice_size = -(-sum(sizes) // ranks)
    return {f"p{n}": Layout(shape, sum(sizes[:n]), slice_size) for n, shape in enumerate(shapes)}


def tensors_of(layouts: dict[str, Layout]) -> dict[str, Tensor]:
    """Values that are all different."""
    first, values = 0, {}
    for kind in KINDS:
        for name, layout in layouts.items():
            values[f"{kind}/{name}"] = torch.arange(first, first + layout.numel, dtype=torch.float32)
            first += layout.numel
    return values


def write(folder: Path, layouts: dict[str, Layout], ranks: int, updates: int = 3) -> dict[str, Tensor]:
    """The files of a learner with these parameters; returns what they hold, flattened."""
    values = tensors_of(layouts)
    kinds = KINDS if updates else KINDS[:1]
    for rank in range(ranks):
        slices = {f"{kind}/{name}": layout.of_rank(rank) for kind in kinds for name, layout in layouts.items()}
        tensors = {key: values[key][own.start : own.stop].clone() for key, own in slices.items() if own}
        PendingFile(FILE.format(rank), tensors).write(folder)
    (folder / DESCRIPTION).write_text(as_json(ranks, updates, layouts))
    return values


@given(shapes, ranks, st.sampled_from([2, 3]))
def test_every_element_has_one_rank(shapes, ranks, stage):
    for layout in layouts_of(shapes, ranks, stage).values():
        owners = [rank for rank in range(ranks) for _ in layout.of_rank(rank)]
        assert [element for rank in range(ranks) for element in layout.of_rank(rank)] == list(range(layout.numel))
        for start in range(layout.numel):
            assert list(layout.ranks_of(range(start, start + 1))) == [owners[start]]
        assert sorted(set(owners)) == [r for r in layout.ranks_of(range(layout.numel)) if layout.of_rank(r)]
        assert not layout.ranks_of(range(0))


@settings(max_examples=60, deadline=None)
@given(shapes, ranks, st.sampled_from([2, 3]), ranks, st.sampled_from([2, 3]))
def test_other_ranks_and_stages_read_the_same_elements(shapes, wrote, stage_then, read, stage_now):
    with TemporaryDirectory() as folder:
        values = write(Path(folder), layouts_of(shapes, wrote, stage_then), wrote)
        saved, now = SavedLearner(Path(folder)), layouts_of(shapes, read, stage_now)
        assert (saved.ranks, saved.updates, saved.kinds) == (wrote, 3, KINDS)
        for rank in range(read):
            saved.check_slices((name, layout.of_rank(rank)) for name, layout in now.items())
            for key, value in values.items():
                kind, name = key.split("/")
                own = now[name].of_rank(rank)
                found = torch.full((len(own),), torch.nan)
                saved.read_into(found, kind, name, own)
                assert torch.equal(found, value[own.start : own.stop])
            with pieces.PieceReader() as reader:
                for name, layout in now.items():
                    found = torch.full((len(layout.of_rank(rank)),), torch.nan, dtype=torch.float64)
                    reader.read_into(found, pieces.part(saved.pieces(name), layout.of_rank(rank)))
                    own = values[f"master/{name}"][layout.of_rank(rank).start : layout.of_rank(rank).stop]
                    assert torch.equal(found, own.double())
        for name, layout in now.items():
            assert torch.equal(saved.whole(name), values[f"master/{name}"].view(layout.shape))


def test_a_rank_opens_the_files_it_needs_only(tmp_path):
    layouts = layouts_of([(8, 5)], 8, 3)
    write(tmp_path, layouts, 8)
    for rank in (0, 1, 2, 3, 6, 7):
        (tmp_path / FILE.format(rank)).unlink()
    saved = SavedLearner(tmp_path)
    saved.check_slices([("p0", range(20, 30))])
    saved.read_into(torch.empty(10), "master", "p0", range(20, 30))
    with pytest.raises(CheckpointError, match=r"learner-rank-00006\.safetensors is missing or damaged.*resume=PATH"):
        saved.check_slices([("p0", range(25, 31))])


@pytest.mark.parametrize("stage", [2, 3])
def test_a_parameter_without_elements_is_read_again(tmp_path, stage):
    layouts = layouts_of([(3, 2), (0, 4), (5,), (0,)], 2, stage)
    values = write(tmp_path, layouts, 2)
    saved = SavedLearner(tmp_path)
    assert saved.layouts == layouts
    for rank in range(2):
        saved.check_slices((name, layout.of_rank(rank)) for name, layout in layouts.items())
    assert saved.whole("p1").shape == (0, 4) and torch.equal(saved.whole("p2"), values["master/p2"])
    check_parameters(saved, layouts)


def test_before_the_first_update_there_are_no_moments(tmp_path):
    write(tmp_path, layouts_of([(3, 2)], 2, 2), 2, updates=0)
    saved = SavedLearner(tmp_path)
    assert saved.kinds == ("master",)
    saved.check_slices([("p0", range(6))])


@pytest.mark.fault(
    "a file of the learner is truncated or of another save", does="refuses it before anything is changed", lost="-"
)
@pytest.mark.parametrize("damage", ["shorter", "empty", "other", "without a moment", "other dtype"])
def test_damaged_files_are_named(tmp_path, damage):
    layouts = layouts_of([(5, 3), (4,)], 2, 3)
    write(tmp_path, layouts, 2)
    file, part = tmp_path / FILE.format(1), {"master/p0": torch.zeros(7), "master/p1": torch.zeros(2)}
    if damage == "shorter":
        file.write_bytes(file.read_bytes()[:-4])
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "other":
        PendingFile(file.name, {key: torch.zeros(1) for key in tensors_of(layouts)}).write(tmp_path)
    elif damage == "without a moment":
        PendingFile(file.name, part).write(tmp_path)
    else:
        whole = {f"{kind}/{name}": torch.zeros(n) for kind in KINDS for name, n in (("p0", 7), ("p1", 2))}
        PendingFile(file.name, {key: value.double() for key, value in whole.items()}).write(tmp_path)
    with pytest.raises(CheckpointError, match=r"learner-rank-00001\.safetensors is missing or damaged"):
        SavedLearner(tmp_path).check_slices((name, layout.of_rank(1)) for name, layout in layouts.items())


GOOD = json.loads(as_json(2, 3, layouts_of([(5, 3)], 2, 3)))
ENTRY = GOOD["parameters"]["p0"]
HOSTILE = {
    "a list": [],
    "no ranks": {key: value for key, value in GOOD.items() if key != "ranks"},
    "a text for a number": {**GOOD, "ranks": "2"},
    "a truth for a number": {**GOOD, "ranks": True},
    "no rank": {**GOOD, "ranks": 0},
    "updates below 0": {**GOOD, "updates": -1},
    "parameters in a list": {**GOOD, "parameters": [1]},
    "no slice": {**GOOD, "parameters": {"p0": {**ENTRY, "slice_size": 0}}},
    "a side below 1": {**GOOD, "parameters": {"p0": {**ENTRY, "shape": [5, -3]}}},
    "a huge shape": {**GOOD, "parameters": {"p0": {**ENTRY, "shape": [2**40, 2**40]}}},
    "more than the slices": {**GOOD, "parameters": {"p0": {**ENTRY, "slice_size": 7}}},
    "a shape that is a number": {**GOOD, "parameters": {"p0": {**ENTRY, "shape": 3}}},
    "an entry that is a list": {**GOOD, "parameters": {"p0": [5, 3]}},
}


@pytest.mark.fault("learner.json is hostile", does="refuses it, naming the file", lost="-")
@pytest.mark.parametrize("content", [*HOSTILE.values(), *(json.dumps(GOOD)[:cut] for cut in (0, 1, 40))], ids=str)
def test_hostile_descriptions_are_refused(tmp_path, content):
    (tmp_path / DESCRIPTION).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(CheckpointError, match=r"learner\.json is not .*checkpoint\.resume"):
        SavedLearner(tmp_path)


def test_other_formats_are_refused(tmp_path):
    (tmp_path / DESCRIPTION).write_text(json.dumps({**GOOD, "format": 2}))
    with pytest.raises(CheckpointError, match=r"has format 2, this version of megaunigame reads 1"):
        SavedLearner(tmp_path)


class Planted:
    """Touches a file when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


@pytest.mark.fault("a pickle in a checkpoint", does="refuses the folder, loads no pickle", lost="-")
def test_folders_of_pickles_are_refused_and_not_run(tmp_path):
    mark = tmp_path / "it ran"
    for name in ("bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt"):
        (tmp_path / name).write_bytes(pickle.dumps(Planted(mark)))
    with pytest.raises(CheckpointError, match=r"early version of megaunigame.*megaunigame export.*model\.weights_from=FOLDER"):
        SavedLearner(tmp_path)
    (tmp_path / DESCRIPTION).write_text(json.dumps(GOOD))
    (tmp_path / FILE.format(0)).write_bytes(pickle.dumps(Planted(mark)))
    with pytest.raises(CheckpointError, match="missing or damaged"):
        SavedLearner(tmp_path).check_slices([("p0", range(4))])
    assert not mark.exists()


def test_checkpoints_load_no_pickle():
    """Neither by themselves nor through the engine's loaders."""
    for file in Path(megaunigame.checkpoint.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"pickle", "deepspeed", "joblib", "dill"}, file.name
            if isinstance(node, ast.Attribute):
                called = f"{getattr(node.value, 'id', '')}.{node.attr}"
                assert called not in ("torch.load", "torch.save") and node.attr != "load_checkpoint", (file.name, node.lineno)


def test_parameters_of_another_model_are_named(tmp_path):
    write(tmp_path, layouts_of([(5, 3), (4,), (2,)], 2, 3), 2)
    saved, same = SavedLearner(tmp_path), layouts_of([(5, 3), (4,), (2,)], 4, 2)
    check_parameters(saved, same)
    trained = {"p0": Layout((3, 5), 0, 15), "p1": same["p1"], "mine": Layout((1,), 0, 1)}
    with pytest.raises(CheckpointError) as caught:
        check_parameters(saved, trained)
    for part in (
        "1 are not in it, such as mine",
        "1 are not trained here, such as p2",
        "1 have other shapes there, such as p0",
    ):
        assert part in str(caught.value)


def test_the_error_of_one_rank_is_raised_on_all():
    raised = []

    def work(world):
        def check():
            if world.rank == 1:
                raise CheckpointError("file 7 is missing")

        try:
            on_every_rank(world, check)
        except CheckpointError as error:
            raised.append(str(error))

    on_ranks(3, work)
    assert raised == ["file 7 is missing"] * 3
