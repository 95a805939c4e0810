"""`prepare tokens`: the counts are those of the rows that a run makes, and survive what does not change the shards."""

from __future__ import annotations

import json
import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from data_prep.__main__ import main
from data_prep.count_tokens import counts_of
from data_prep.recipe_rows import processor_of
from megaunigame.config import StreamConfig, load_recipe
from megaunigame.data.conversation import conversation_of
from megaunigame.data.decode import decode_sample
from megaunigame.data.shards.index import ShardIndex
from megaunigame.data.shards.table import index_name
from megaunigame.data.shards.token_counts import ENDING, NONE
from megaunigame.data.sources.opening import open_stream
from megaunigame.step.requests import UNDERSTAND, RowRequest, StepPlan
from megaunigame.step.rows import UnderstandRow
from tests.data_prep.toy_sets import picture

ROOT = Path(__file__).parents[2]
RECIPE = str(ROOT / "launch" / "recipes" / "tiny_sft.yaml")
ASKED = ("what color is it ?", "is there a sphere left of the red cube ? " * 5, "how many ?")
ENTRIES = 7


@pytest.fixture
def packed(tmp_path, monkeypatch):
    """How to pack again; conversations of one to three turns, one without a picture, captions for some."""
    monkeypatch.chdir(ROOT)
    entries = []
    for number in range(ENTRIES):
        (tmp_path / f"{number}.png").write_bytes(picture(number, 16))
        talk = [
            {"from": who, "value": text}
            for question in ASKED[: 1 + number % 3]
            for who, text in (("human", question), ("gpt", "red and blue . " * number + "yes ."))
        ]
        entry = {"id": str(number), "conversations": talk}
        entries.append(entry | ({"image": f"{number}.png"} if number != 4 else {}) | ({"caption": "two"} if number % 2 else {}))
    (tmp_path / "d.json").write_text(json.dumps(entries))
    pack = ["pack", "--format", "llava-json", "--json", str(tmp_path / "d.json"), "--image-root", str(tmp_path)]
    pack += ["--shard-size", "3", "--out", str(tmp_path / "shards")]
    assert main(pack) == 0
    return tmp_path / "shards", pack


def test_rows_are_as_long_as_the_counts_say(packed, capsys):
    folder, _ = packed
    before = ShardIndex.open(folder).hash
    assert main(["tokens", str(folder), "--for", RECIPE, "model.max_length=900"]) == 0
    assert f"{ENTRIES} conversations of" in (said := capsys.readouterr().out) and "3 captions of 2.0 tokens on average" in said
    assert "samples have no conversation" not in said and ShardIndex.open(folder).hash == before
    assert main(["verify", str(folder)]) == 0
    _, processor = processor_of(load_recipe(RECIPE, ["model.max_length=900"]).model)
    source = open_stream("s", StreamConfig(str(folder)), 0).source
    assert source.uncounted(processor.tokenizer_hash) == []
    request = RowRequest("u", UNDERSTAND, "s", 1)
    told = processor.lengths(request, source.amounts(range(ENTRIES), processor.tokenizer_hash))
    there = []
    for position in range(ENTRIES):
        ref = source.find(position, 0)
        sample = decode_sample(ref.key, ref.read())
        row = UnderstandRow(sample.images, conversation_of(sample).asked())
        there.append(int(processor.collate(StepPlan((request,)), UNDERSTAND, [row], [0], [""]).attention.sum()))
    assert np.abs(told - there).max() <= 1 + len(ASKED) and max(there) > 2 * min(there), (told, there)


def test_counts_of_several_tokenizers_and_packing_again(packed, capsys):
    """A folder that is complete keeps its counts, but not those of other shards."""
    folder, pack = packed
    emu3 = ["model.family=emu3", "model.weights=random", "model.size=tiny", "model.path=absent"]
    for more in ([], emu3):
        assert main(["tokens", str(folder), "--for", RECIPE, *more]) == 0
    index, names = ShardIndex.open(folder), {path.name.removesuffix(ENDING) for path in folder.glob(f"*{ENDING}")}
    assert len(names) == 2 and all(index.has_counts(name) for name in names)
    one, other = (index.amounts(2, name).conversation_tokens for name in sorted(names))
    assert len(one) == 1 and one != other
    sent = pickle.loads(pickle.dumps(partial(counts_of, folder, (RECIPE,))))  # to the processes of --workers
    file = sorted(path.name for path in folder.glob("*.tar"))[2]
    assert sent(file)[0, 0] in (*one, *other)
    assert main(pack) == 0
    assert all(ShardIndex.open(folder).has_counts(name) for name in names)
    about = json.loads((folder / "dataset.json").read_text())
    about["shards"][0]["sha256"] = 64 * "0"
    (folder / "dataset.json").write_text(json.dumps(about))
    assert main(pack) == 0
    assert not any(ShardIndex.open(folder).has_counts(name) for name in names)


@pytest.mark.parametrize("file", ["tar", "index.json", "gone"])
def test_shards_that_are_not_whole_get_no_counts(packed, capsys, file):
    """Else its samples would count as samples without texts."""
    folder, _ = packed
    tar = sorted(folder.glob("*.tar"))[1]
    hurt = tar if file != "index.json" else tar.with_name(index_name(tar.name))
    if file == "gone":
        tar.unlink()
    else:
        hurt.write_bytes(hurt.read_bytes()[:-1024])
    assert main(["tokens", str(folder), "--for", RECIPE]) == 2
    said = capsys.readouterr().err
    assert tar.name in said and "Copy it again" in said and not list(folder.glob(f"*{ENDING}"))


def test_samples_that_say_nothing_are_counted_aloud(packed, capsys, monkeypatch):
    monkeypatch.setattr("data_prep.count_tokens.tokens_in", lambda meta, pictures, processor: (NONE, NONE, NONE))
    assert main(["tokens", str(packed[0]), "--for", RECIPE]) == 0
    assert f"{ENTRIES} samples have no conversation and no caption" in capsys.readouterr().out


def test_what_cannot_be_counted(tmp_path, capsys):
    assert main(["tokens", str(tmp_path), "--for", RECIPE]) == 2
    assert "pack it first" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["tokens", str(tmp_path)])
    assert "--for" in capsys.readouterr().err
