"""Bounds of settings: what is out of one is refused under its full key, at any depth; what is inside passes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megaunigame.errors import ConfigError
from megaunigame.settings import above, at_least, between, check_values, fill, half_open, one_of, read

KINDS = ("round", "square", "pointed")


@dataclass
class Leaf:
    low: int = at_least(2, 3)
    open: float = above(0, 1.0)
    closed: float = between(-1, 1, 0.5)
    half: float = half_open(0, 1, 0.25)
    kind: str = one_of(KINDS, "round")
    maybe: float | None = between(-1, 1, None)
    each: dict[str, float] = at_least(0, dict)
    several: list[float] = half_open(0, 1, lambda: [0.5, 0.75])
    kinds: list[str] = one_of(KINDS, lambda: ["round"])


@dataclass
class Tree:
    leaf: Leaf = field(default_factory=Leaf)
    leaves: dict[str, Leaf] = field(default_factory=dict)
    bare: Leaf | None = None
    first: int = 0
    last: int = 0

    def check(self, path: str) -> None:
        if self.first > self.last:
            raise ConfigError(f"{path}.first={self.first} is greater than {path}.last={self.last}.")


PLACES = {
    "root.leaf": lambda leaf: {"leaf": leaf},
    "root.leaves.oak": lambda leaf: {"leaves": {"elm": {}, "oak": leaf}},
    "root.bare": lambda leaf: {"bare": leaf},
}
"""Full key of a leaf -> the settings in which it stands."""

INSIDE = {
    "low": st.integers(2, 10**9),
    "open": st.floats(0, 1e300, exclude_min=True),
    "closed": st.floats(-1, 1),
    "half": st.floats(0, 1, exclude_max=True),
    "kind": st.sampled_from(KINDS),
    "maybe": st.none() | st.floats(-1, 1),
    "each": st.dictionaries(st.sampled_from("abc"), st.floats(0, 1e300)),
    "several": st.lists(st.floats(0, 1, exclude_max=True)),
    "kinds": st.lists(st.sampled_from(KINDS)),
}
NAN = st.just(math.nan)
BEYOND_ONE = st.floats(max_value=-1, exclude_max=True) | st.floats(min_value=1, exclude_min=True) | NAN
OUTSIDE_HALF_OPEN = st.floats(max_value=0, exclude_max=True) | st.floats(min_value=1) | NAN
NAMES = st.text("abcdefgh", min_size=1).filter(lambda name: name not in KINDS)
OUTSIDE = {
    "low": ("low", "be at least 2", st.integers(-(10**9), 1)),
    "open": ("open", "be greater than 0", st.floats(max_value=0) | NAN),
    "closed": ("closed", "lie in [-1, 1]", BEYOND_ONE),
    "half": ("half", "lie in [0, 1)", OUTSIDE_HALF_OPEN),
    "kind": ("kind", "round, square, pointed", NAMES),
    "maybe": ("maybe", "lie in [-1, 1]", BEYOND_ONE),
    "each": ("each.b", "be at least 0", st.floats(max_value=0, exclude_max=True).map(lambda x: {"a": 1.0, "b": x})),
    "several": ("several[1]", "lie in [0, 1)", OUTSIDE_HALF_OPEN.map(lambda x: [0.5, x])),
    "kinds": ("kinds[0]", "round, square, pointed", NAMES.map(lambda name: [name])),
}
"""Field -> its key in the message, what is legal, and values that are not."""


def last(value: object) -> object:
    """The entry of OUTSIDE's containers that is wrong."""
    return [*value.values()][-1] if isinstance(value, dict) else value[-1] if isinstance(value, list) else value


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", OUTSIDE)
@settings(max_examples=30)
@given(data=st.data())
def test_a_value_out_of_its_bounds_is_refused_under_its_full_key(place, name, data):
    key, legal, values = OUTSIDE[name]
    value = data.draw(values)
    with pytest.raises(ConfigError) as caught:
        fill(Tree, PLACES[place]({name: value}), "root")
    message = str(caught.value)
    if "kind" in name:
        assert message.startswith(f"Unknown value of {place}.{key} {last(value)!r}.") and message.endswith(f"Legal: {legal}.")
    else:
        assert message.startswith(f"{place}.{key} must {legal}; got {last(value)}.")


@pytest.mark.parametrize("place", PLACES)
@given(leaf=st.fixed_dictionaries({}, optional=INSIDE))
def test_values_inside_their_bounds_pass(place, leaf):
    filled = fill(Tree, PLACES[place](leaf), "root")
    found = {"root.leaf": filled.leaf, "root.leaves.oak": filled.leaves.get("oak"), "root.bare": filled.bare}[place]
    assert {name: getattr(found, name) for name in leaf} == leaf


def test_defaults_are_those_of_the_fields_and_are_not_shared():
    one, other = fill(Tree, {}, ""), fill(Tree, {}, "")
    assert one == Tree() and Leaf().several == [0.5, 0.75] and Leaf.low == 3
    one.leaf.several.append(0.1)
    assert other.leaf.several == [0.5, 0.75]


def test_the_message_says_what_was_got_what_is_legal_and_the_default():
    with pytest.raises(ConfigError) as caught:
        fill(Tree, {"leaf": {"low": 1}}, "")
    assert str(caught.value) == "leaf.low must be at least 2; got 1. Default: 3."
    with pytest.raises(ConfigError) as caught:
        fill(Tree, {"leaf": {"maybe": 2.0}}, "")
    assert str(caught.value) == "leaf.maybe must lie in [-1, 1]; got 2.0."
    with pytest.raises(ConfigError, match=r"Unknown value of leaf\.kind 'squar'\. Did you mean 'square'\? Legal: round, "):
        fill(Tree, {"leaf": {"kind": "squar"}}, "")


@pytest.mark.parametrize("place", PLACES)
@given(cut=st.integers(0, 4))
def test_an_unknown_key_is_told_the_nearest_one(place, cut):
    misspelt = "several"[:cut] + "several"[cut + 1 :]
    with pytest.raises(ConfigError) as caught:
        fill(Tree, PLACES[place]({misspelt: [0.5]}), "root")
    assert str(caught.value).startswith(f"In {place}: Unknown key {misspelt!r}. Did you mean 'several'?")


@pytest.mark.parametrize("place", PLACES)
def test_a_wrong_type_is_refused_under_its_full_key(place):
    with pytest.raises(ConfigError, match=rf"Setting '{place}\.low': .*many"):
        fill(Tree, PLACES[place]({"low": "many"}), "root")
    with pytest.raises(ConfigError, match=rf"Setting '{place}' must be a mapping of settings; got 5"):
        fill(Tree, PLACES[place](5), "root")
    with pytest.raises(ConfigError, match=rf"Setting '{place}\.each' must be a mapping of settings; got 5"):
        fill(Tree, PLACES[place]({"each": 5}), "root")


def test_what_may_be_left_out_may_be_null():
    assert fill(Tree, {"bare": None}, "root").bare is None
    with pytest.raises(ConfigError, match="Setting 'root.leaf' must be a mapping of settings; got None"):
        fill(Tree, {"leaf": None}, "root")


def test_what_relates_two_fields_gets_the_true_path_and_comes_after_the_bounds():
    with pytest.raises(ConfigError, match=r"^root\.first=2 is greater than root\.last=1\.$"):
        fill(Tree, {"first": 2, "last": 1}, "root")
    with pytest.raises(ConfigError, match=r"^root\.leaf\.low must"):
        fill(Tree, {"first": 2, "last": 1, "leaf": {"low": 0}}, "root")


def test_settings_built_in_code_are_checked_on_demand():
    check_values(Tree(), "root")
    with pytest.raises(ConfigError, match=r"^root\.leaves\.oak\.half must lie in \[0, 1\); got 1\.0\. Default: 0\.25\.$"):
        check_values(Tree(leaves={"oak": Leaf(half=1.0)}), "root")


def test_a_path_in_the_home_folder_is_found(tmp_path, monkeypatch):
    """A shell does not expand `output=~/run`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x.yaml").write_text("output: runs/~/x\ndata: {a: {shards: ~/shards, where: [~/rule, '~']}}\n")
    given = read(str(tmp_path / "x.yaml"), ["model.path=~/m"], "recipe", "y.yaml")
    assert given == {
        "output": "runs/~/x",
        "data": {"a": {"shards": f"{tmp_path}/shards", "where": [f"{tmp_path}/rule", "~"]}},
        "model": {"path": f"{tmp_path}/m"},
    }
