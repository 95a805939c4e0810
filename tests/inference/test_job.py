"""What a job keeps when its process is killed, and what it refuses to mix."""

from __future__ import annotations

import json

import pytest

from megaunigame.errors import ConfigError
from megaunigame.inference.job import Job, digest_of
from tests.refusals import refused

IDENTITY = {"command": "answer", "model": "ab", "--temperature": 0.0}


def a_job(folder, items=("a", "b", "c"), **changes) -> Job:
    return Job(folder / "out.jsonl", folder / "out.jsonl.job", {**IDENTITY, **changes}, [digest_of(item) for item in items])


def add(job, rank, size, *results):
    job.open_part(rank, size).add(results)


def test_results_of_any_number_of_ranks_become_one_file_in_order(tmp_path):
    job = a_job(tmp_path)
    assert job.begin() == [0, 1, 2]
    add(job, 1, 2, (1, {"answer": "é"}))
    add(job, 0, 3, (2, {"answer": "3"}), (0, {"answer": "1"}))
    assert [r["answer"] for r in job.merge()] == ["1", "é", "3"]
    assert [json.loads(line)["answer"] for line in job.out.read_text().splitlines()] == ["1", "é", "3"]
    job.close()
    assert a_job(tmp_path).begin() == []


def test_half_a_line_does_not_count_and_is_not_continued(tmp_path):
    job = a_job(tmp_path)
    job.begin()
    add(job, 0, 1, (0, {"answer": "1"}), (1, {"answer": "2"}))
    job.close()
    part = next(job.folder.glob("part-*"))
    for cut in (1, 9, len(part.read_bytes().split(b"\n")[1])):
        part.write_bytes(part.read_bytes()[:-cut])
        job = a_job(tmp_path)
        assert job.begin() == [1, 2]
        add(job, 0, 1, (1, {"answer": "again"}))
        assert job.results()[1] == {"answer": "again"} and len(part.read_text().splitlines()) == 2
        job.close()


def test_a_changed_item_and_one_with_an_error_are_done_again(tmp_path):
    job = a_job(tmp_path)
    job.begin()
    add(job, 0, 1, (0, {"answer": "1"}), (1, {"error": "bad"}), (2, {"answer": "3"}))
    assert job.merge()[1] == {"error": "bad"}
    job.close()
    changed = a_job(tmp_path, ("a", "b", "C", "d"))
    assert changed.begin() == [1, 2, 3]
    add(changed, 0, 1, (1, {"answer": "2"}), (2, {"answer": "new"}), (3, {"error": "worse"}))
    assert changed.merge() == [{"answer": "1"}, {"answer": "2"}, {"answer": "new"}, {"error": "worse"}]


def test_a_result_whose_picture_is_gone_does_not_count(tmp_path):
    job = Job(tmp_path / "index", tmp_path / "job", IDENTITY, ["x"], holds=lambda result: (tmp_path / result["file"]).exists())
    assert job.begin() == [0]
    add(job, 0, 1, (0, {"file": "a.png"}))
    job.close()
    assert job.begin() == [0]
    with pytest.raises(ConfigError, match="1 results are missing .* that of item 0"):
        job.merge()
    job.close()
    (tmp_path / "a.png").touch()
    assert job.begin() == []


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"--temperature": 0.7},
            "another --temperature: 0.0 then, 0.7 now. To go on, type --temperature 0.0 again, give another --out",
        ),
        ({"model": "cd"}, "another model: ab then, cd now. To go on, give another --out, or delete .*out.jsonl.job"),
        ({"--prompt": "x"}, "another --prompt: None then, x now. To go on, leave out --prompt, give another --out"),
    ],
)
def test_another_model_and_other_settings_are_refused(tmp_path, changes, message):
    job = a_job(tmp_path)
    job.begin()
    job.close()
    with pytest.raises(ConfigError, match=message):
        a_job(tmp_path, **changes).begin()


def test_one_process_at_a_time_and_no_file_of_somebody_else(tmp_path):
    first = a_job(tmp_path)
    first.begin()
    with pytest.raises(ConfigError, match="Another process works on"):
        a_job(tmp_path).begin()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "out.jsonl").touch()
    with pytest.raises(ConfigError, match="is there already, and not from this job"):
        a_job(tmp_path / "other").begin()


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with refused(
        f"--out {tmp_path / 'file' / 'out.jsonl'} cannot be written: a folder on its way is a file. Give another place."
    ):
        a_job(tmp_path / "file").begin()


def test_a_file_that_is_not_of_a_job_is_refused(tmp_path):
    job = a_job(tmp_path)
    job.begin()
    job.close()
    (job.folder / "job.json").write_text("[]")
    with pytest.raises(ConfigError, match="is not the description of a job"):
        job.begin()
