"""`megaunigame answer`, `draw` and `redraw`: the same results, to the last bit, for any batch, any number of ranks, and after
any end of the process."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import time
from importlib import import_module
from pathlib import Path

import pytest

from megaunigame.errors import ConfigError, DataError, Interrupted
from megaunigame.inference import command_options
from megaunigame.inference.model import Model
from megaunigame.launching import options_of
from tests.inference.conftest import WEIGHTS
from tests.multi_process.launcher import free_port

FORK = multiprocessing.get_context("fork")
"""Ranks that need not import torch again. Tests run with one thread, which is what a fork of torch needs."""


@pytest.fixture(autouse=True)
def loaded_once(monkeypatch, tiny):
    """Commands load the model of the session; what loading does is tested elsewhere."""
    monkeypatch.setattr(command_options, "load_with", lambda options, source, checked: tiny)


def run(name: str, *arguments: object) -> None:
    """The command, in this process."""
    command = import_module(f"megaunigame.commands.{name}")
    parser = options_of(command.__doc__)
    command.add_options(parser)
    command.run(parser.parse_args([str(WEIGHTS), "--device", "cpu", *map(str, arguments)]))


def run_ranks(size: int, name: str, *arguments: object) -> list[multiprocessing.process.BaseProcess]:
    """The command on `size` ranks, which have begun."""
    shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}

    def rank(number: int) -> None:
        os.environ.update(shared, RANK=str(number), LOCAL_RANK=str(number))
        run(name, *arguments)
        os._exit(0)  # not through the ends of the test's process

    ranks = [FORK.Process(target=rank, args=(number,)) for number in range(size)]
    for process in ranks:
        process.start()
    return ranks


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def content(folder: Path) -> dict[str, bytes]:
    """Pictures and index."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


@pytest.fixture
def questions(tmp_path, scenes) -> Path:
    """Of different lengths, about one picture, two or none."""
    asked = [
        {"id": f"{n}-{k}", "image": scene.picture.name, "question": question}
        for n, scene in enumerate(scenes)
        for k, (question, _) in enumerate(scene.questions[:2])
    ]
    asked[3]["images"] = [asked[3].pop("image"), scenes[1].picture.name]
    del asked[5]["image"]
    asked[7] = {"image": scenes[2].picture.name, "conversations": [{"from": "human", "value": "is it day ?"}]}
    file = tmp_path / "questions.jsonl"
    file.write_text("\n".join(map(json.dumps, asked)))
    return file


def answer(questions: Path, scenes, out: Path, *arguments: object) -> list[dict]:
    run("answer", "--in", questions, "--image-root", scenes[0].picture.parent, "--out", out, *arguments)
    return lines(out)


DRAWN_TEXT = ("--max-tokens", 12, "--temperature", 1.5, "--seed", 3)


@pytest.mark.ranks
def test_answers_are_the_same_for_any_batch_and_number_of_ranks(tmp_path, questions, scenes):
    one = answer(questions, scenes, tmp_path / "1.jsonl", *DRAWN_TEXT, "--batch", 1)
    assert [entry["id"] for entry in one[:3]] == ["0-0", "0-1", "1-0"] and one[7]["id"] == "7"
    assert len({entry["answer"] for entry in one}) > 5
    for batch in (3, 7):
        assert answer(questions, scenes, tmp_path / f"{batch}.jsonl", *DRAWN_TEXT, "--batch", batch) == one
    given = ("--in", questions, "--image-root", scenes[0].picture.parent, "--out", tmp_path / "ranks.jsonl", *DRAWN_TEXT)
    ranks = run_ranks(2, "answer", *given, "--batch", 4)
    assert [process.join(60) or process.exitcode for process in ranks] == [0, 0]
    assert (tmp_path / "ranks.jsonl").read_bytes() == (tmp_path / "1.jsonl").read_bytes()
    parts = sorted((tmp_path / "ranks.jsonl.job").glob("part-*"))
    assert [len(lines(part)) for part in parts] == [12, 10]  # whole batches


@pytest.mark.ranks
def test_pictures_are_the_same_after_a_kill_on_another_number_of_ranks(tmp_path, scenes):
    """Both ranks are killed in the middle; one rank goes on with another batch."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(scene.caption for scene in scenes[:4]))
    given = ("--prompts", prompts, "--per-prompt", 2, "--seed", 2)
    run("draw", *given, "--out", tmp_path / "whole", "--batch", 7)
    whole = content(tmp_path / "whole")
    assert len(whole) == 9 and len(set(whole.values())) == 9
    assert lines(tmp_path / "whole" / "index.jsonl")[3] == {
        **{"id": "1", "prompt": scenes[1].caption, "sample": 1, "file": "000001-1.png"},
        "sha256": hashlib.sha256(whole["000001-1.png"]).hexdigest(),
    }

    out = tmp_path / "killed"
    ranks = run_ranks(2, "draw", *given, "--out", out, "--batch", 2)
    deadline = time.monotonic() + 60
    while not all(part.stat().st_size for part in out.glob("job/part-*")) or len(list(out.glob("job/part-*"))) < 2:
        assert time.monotonic() < deadline and any(process.is_alive() for process in ranks)
        time.sleep(0.01)
    for process in ranks:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    done = sum(len(part.read_bytes().split(b"\n")) - 1 for part in out.glob("job/part-*"))
    assert 0 < done < 8 and not (out / "index.jsonl").exists()
    before = {file.name: file.stat().st_mtime_ns for file in out.glob("*.png")}
    run("draw", *given, "--out", out, "--batch", 3)
    assert content(out) == whole
    assert sum(file.stat().st_mtime_ns == before.get(file.name) for file in out.glob("*.png")) >= done


def test_the_command_draws_what_the_library_draws(tmp_path, tiny, scenes):
    captions = [scene.caption for scene in scenes[:2]]
    (tmp_path / "prompts.txt").write_text("\n".join(captions))
    run("draw", "--prompts", tmp_path / "prompts.txt", "--per-prompt", 2, "--out", tmp_path / "out", "--seed", 5)
    from PIL import Image

    for number, pictures in enumerate(tiny.draw(captions, count=2, seed=5)):
        for sample, picture in enumerate(pictures):
            assert list(Image.open(tmp_path / "out" / f"{number:06d}-{sample}.png").getdata()) == list(picture.getdata())


def test_a_prompt_that_comes_back_does_not_keep_the_picture_of_another(tmp_path, capsys):
    out, pictures = tmp_path / "out", []
    for prompt in ("a red cube .", "a blue ball .", "a red cube .", "a red cube ."):
        (tmp_path / "prompts.txt").write_text(prompt)
        run("draw", "--prompts", tmp_path / "prompts.txt", "--out", out)
        pictures.append((out / "000000-0.png").read_bytes())
    assert pictures[0] == pictures[2] == pictures[3] != pictures[1]
    assert lines(out / "index.jsonl")[0]["prompt"] == "a red cube ."
    assert capsys.readouterr().out.count("all were there already") == 1


def test_redrawn_pictures_and_their_index(tmp_path, tiny, scenes):
    folder = scenes[0].picture.parent
    (tmp_path / "not a picture.png").write_text("no")
    with pytest.raises(DataError, match="1 of 12 pictures have an error, the first: The picture .* cannot be used"):
        run(
            "redraw",
            "--pictures",
            folder,
            tmp_path / "not a picture.png",
            "--to",
            "pixel",
            "--out",
            tmp_path / "out",
            "--batch",
            5,
        )
    index = lines(tmp_path / "out" / "index.jsonl")
    assert len(index) == 12 and "error" in index[-1] and "file" not in index[-1]
    assert {entry.get("prompt") for entry in index[:-1]} == {"draw this image again ."}
    from PIL import Image

    first = Image.open(tmp_path / "out" / index[0]["file"])
    assert list(first.getdata()) == list(tiny.redraw(index[0]["picture"]).getdata())
    with pytest.raises(ConfigError, match="is in the folder --out .* Give another --out"):
        run("redraw", "--pictures", tmp_path / "out", "--to", "pixel", "--out", tmp_path / "other" / ".." / "out")
    with pytest.raises(ConfigError, match="No pictures in"):
        (tmp_path / "empty").mkdir()
        run("redraw", "--pictures", tmp_path / "empty", "--to", "pixel", "--out", tmp_path / "other")
    with pytest.raises(ConfigError, match="Unknown representation 'depht'"):
        run("redraw", "--pictures", folder, "--to", "depht", "--out", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_bad_lines_are_answered_with_an_error_and_tried_again(tmp_path, scenes, capsys):
    name = scenes[0].picture.name
    file, good = tmp_path / "questions.jsonl", {"image": name, "question": "how many objects are there ?"}
    missing = {"id": "m", "image": "later.png", "question": "what ?"}
    too_long = {"question": "why " * 2000}
    fed_in_again = [good | {"error": "an old one"}, missing | {"cut": True}]
    told = [json.dumps(entry) for entry in (*fed_in_again, too_long, good)]
    file.write_text("\n".join([told[0], "\n{", *told[1:]]))
    root = tmp_path / "pictures"
    root.mkdir()
    (root / name).write_bytes(scenes[0].picture.read_bytes())
    given = ("--in", file, "--image-root", root, "--out", tmp_path / "out.jsonl", "--max-tokens", 1)
    with pytest.raises(DataError, match="3 of 5 questions have an error, the first: The line is not JSON"):
        run("answer", *given)
    found = lines(tmp_path / "out.jsonl")
    assert ["error" in entry for entry in found] == [False, True, True, True, False]
    assert found[0] == {"id": "0", **good, "answer": found[4]["answer"], "cut": True}
    assert found[1]["line"] == 3 and found[2]["id"] == "m" and "The question has" in found[3]["error"]
    assert "2 answers have not ended after --max-tokens 1" in capsys.readouterr().out

    (root / "later.png").write_bytes(scenes[0].picture.read_bytes())
    file.write_text("\n".join([json.dumps(good), json.dumps(good), json.dumps(missing)]))
    calls, answers = [], Model.answer
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Model, "answer", lambda model, asked, settings: calls.append(len(asked)) or answers(model, asked, settings)
        )
        run("answer", *given)
        run("answer", *given)
    assert calls == [3] and all("answer" in entry for entry in lines(tmp_path / "out.jsonl"))
    assert "all were there already" in capsys.readouterr().out


@pytest.mark.parametrize(
    "changes, message",
    [
        (("--temperature", 0.5), "another --temperature: 0.0 then, 0.5 now. To go on, type --temperature 0.0 again"),
        (("--dtype", "bfloat16"), "another --dtype: float32 then, bfloat16 now"),
        (("--max-length", 300), "another --max-length: None then, 300 now. To go on, leave out --max-length, give another"),
        (("--attention", "eager"), "another --attention: sdpa then, eager now"),
        (("--image-root", "."), "another --image-root: .* then, .* now"),
    ],
)
def test_another_command_into_the_same_file_is_refused(tmp_path, questions, scenes, changes, message):
    out = tmp_path / "out.jsonl"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted, match="SIGTERM: stopped. What is done is kept in"):
        patch.setattr(Model, "answer", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        answer(questions, scenes, out, "--max-tokens", 4)
    with pytest.raises(ConfigError, match=message):
        answer(questions, scenes, out, "--max-tokens", 4, *changes)
    assert not out.exists()


def test_a_reference_stays_one(tmp_path):
    """Of the line, before the answer that a model gave to it earlier."""
    talk = [{"from": "human", "value": "is it day ?"}, {"from": "gpt", "value": "said last"}]
    asked = [
        {"question": "is it day ?", "answer": "model said", "reference": "gold"},
        {"question": "is it day ?", "answer": "model said", "reference": ""},
        {"question": "is it day ?", "answer": "gold"},
        {"conversations": talk},
        {"conversations": talk, "answer": "model said", "reference": "gold"},
        {"question": "is it day ?", "reference": None},
    ]
    file, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    file.write_text("\n".join(map(json.dumps, asked)))
    run("answer", "--in", file, "--out", out, "--max-tokens", 1)
    references = ["gold", "", "gold", "said last", "gold", None]
    assert [entry.get("reference") for entry in lines(out)] == references
    run("answer", "--in", out, "--out", tmp_path / "again.jsonl", "--max-tokens", 2)
    again = [entry.get("reference") for entry in lines(tmp_path / "again.jsonl")]
    assert again[:5] == references[:5]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("answer", "--in", "none", "--out", "x"), "none cannot be read: No such file"),
        (("answer", "--in", "none", "--out", "x", "--batch", 0), "--batch must be 1 or more; got 0"),
        (("answer", "--in", "none", "--out", "x", "--temperature", -1), "temperature must be at least 0"),
        (("answer", "--in", "none", "--out", "x", "--max-length", -5), "--max-length. must be 1 or more; got -5"),
        (("draw", "--prompts", "a.txt", "--out", "x", "--max-length", 0), "--max-length. must be 1 or more; got 0"),
        (("draw", "--prompts", "a.csv", "--out", "x"), "must end with .txt"),
        (("draw", "--prompts", "a.txt", "--out", "x", "--per-prompt", 0), "--per-prompt must be 1 or more"),
        (("redraw", "--pictures", "none", "--to", "depth", "--out", "x"), "No file and no folder none"),
    ],
)
def test_options_that_are_not_legal_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        run(*arguments)
