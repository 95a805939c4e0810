"""Tables of attention targets and their files."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megaunigame.attention.targets import Target, find_targets, read_targets, table, write_targets
from megaunigame.errors import ConfigError
from megaunigame.step.requests import GENERATE, UNDERSTAND

BANDS = {
    GENERATE: (Target(0.2, 0.4), Target(0.1, 0.4), Target(0.05, 0.2)),
    UNDERSTAND: (Target(0.05, 0.1), Target(0.05, 0.15), Target(0.05, 0.3)),
}
"""From the first layer to the last."""


def test_the_published_tables():
    janus, emu3 = table("auto", 30, family="janus"), table("auto", 32, family="emu3")
    assert janus == table("janus_pro", 30) and emu3 == table("emu3", 32)
    first, middle, last = BANDS[GENERATE]
    assert [janus[GENERATE][x] for x in (9, 10, 24, 25)] == [first, middle, middle, last]
    assert [janus[UNDERSTAND][x].target for x in (0, 9, 10, 19, 20, 29)] == [0.1, 0.1, 0.15, 0.15, 0.3, 0.3]
    assert [emu3[UNDERSTAND][x].target for x in (20, 30, 31)] == [0.3, 0.3, 0.2]
    assert {target.delta for target in janus[UNDERSTAND]} == {0.05}


def test_the_released_code_differs_in_one_layer():
    differing = [x for x in range(30) if table("janus_pro", 30)[UNDERSTAND][x] != table("janus_pro", 30, True)[UNDERSTAND][x]]
    assert differing == [20] and table("janus_pro", 30, True)[GENERATE] == table("janus_pro", 30)[GENERATE]


def test_relative_depth_agrees_with_the_table_it_stretches():
    assert table("relative", 30) == table("janus_pro", 30)


def test_the_released_bands_are_at_the_same_layers_of_every_model():
    """0-9, 10-20, 21-29 and from 30 on, by absolute index; generation 0-9, 10-24 and from 25 on."""
    for depth in (12, 28, 30, 32, 40):
        released = table("released", depth)
        assert [t.target for t in released[UNDERSTAND]] == ([0.1] * 10 + [0.15] * 11 + [0.3] * 9 + [0.2] * 10)[:depth]
        assert [t.target for t in released[GENERATE]] == ([0.4] * 25 + [0.2] * 15)[:depth]
        assert [t.delta for t in released[GENERATE]] == ([0.2] * 10 + [0.1] * 15 + [0.05] * 15)[:depth]
    assert table("janus_pro", 30, True) == table("released", 30) and table("emu3", 32, True) == table("released", 32)
    paper, released = table("emu3", 32)[UNDERSTAND], table("released", 32)[UNDERSTAND]
    assert [layer for layer in range(32) if paper[layer] != released[layer]] == [20, 30]


@given(st.integers(1, 200))
def test_relative_depth_keeps_the_order_of_the_bands(depth):
    for name, order in BANDS.items():
        targets = table("relative", depth)[name]
        places = [order.index(target) for target in targets]
        assert len(targets) == depth and places == sorted(places)


@given(st.lists(st.tuples(st.sampled_from([0.05, 0.1, 0.2]), st.sampled_from([0.0, 0.15, 0.4, 1.0])), min_size=1, max_size=40))
def test_a_file_gives_back_what_was_written(tmp_path_factory, pairs):
    file = tmp_path_factory.mktemp("targets") / "t.yaml"
    targets = [Target(delta, target) for delta, target in pairs]
    write_targets(file, {UNDERSTAND: targets}, "from a teacher\n30 samples")
    assert read_targets(file, len(targets)) == {UNDERSTAND: targets}


BAND = "{{layers: [{}, {}], delta: 0.1, target: 0.4}}"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("generate: []", "has no `depth`"),
        ("[1, 2", "is not YAML"),
        ("depth: 30\ngenerate: []", "targets for 30 layers, and this model has 4"),
        ("depth: 4", "targets for no pass; give generate or understand"),
        ("depth: 4\ngenerate:\n  - " + BAND.format(0, 2), "no band for layer 3"),
        ("depth: 4\ngenerate:\n  - " + BAND.format(1, 3), r"layer 0 is due, there is \[1, 3\]"),
        ("depth: 4\ngenerate:\n  - " + BAND.format(0, 4), r"layer 0 is due, there is \[0, 4\]"),
        ("depth: 4\ngenerate:\n  - {layers: [0, 3], delta: 0.1}", "a band is"),
        ("depth: 4\ngenerate:\n  - {layers: [0, 3], delta: 0.1, target: 40}", r"a target lies in \[0, 1\]"),
        ("depth: 4\ngenerate:\n  - {layers: [0, 3], delta: 0, target: 0.4}", "a delta above 0"),
    ],
)
def test_wrong_files_are_refused(tmp_path, content, complaint):
    (tmp_path / "t.yaml").write_text(content)
    with pytest.raises(ConfigError, match=complaint):
        read_targets(tmp_path / "t.yaml", 4)


def test_wrong_tables_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"Unknown .*'janus'.*Did you mean 'janus_pro'"):
        table("janus", 30)
    with pytest.raises(ConfigError, match=r"made for 30 layers, and this model has 24.*targets=relative"):
        table("janus_pro", 24)
    with pytest.raises(ConfigError, match="No targets file"):
        read_targets(tmp_path / "none.yaml", 4)


@pytest.mark.parametrize(("family", "depth"), [("janus", 24), ("emu3", 30), ("openuni", 32), ("openuni", 28)])
def test_models_without_a_published_table_are_told_to_measure_one(family, depth):
    message = f"no table was published for a {family} of {depth} layers.*measure-attention.*targets=relative"
    with pytest.raises(ConfigError, match=message):
        find_targets("auto", family, depth)
    assert len(find_targets("relative", family, depth)[GENERATE]) == depth
