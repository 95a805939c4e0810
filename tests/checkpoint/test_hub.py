"""Uploads to the model hub, against a folder in its place: no test has a network."""

from __future__ import annotations

import fnmatch
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, HTTPError

from megaunigame.checkpoint import hub
from megaunigame.checkpoint.hub import prepare_repository, push_folder
from megaunigame.errors import ConfigError, HubError
from tests.refusals import refused


class LocalHub:
    """The two calls that are made of `HfApi`, with a folder for each repository."""

    def __init__(self, root: Path, failure: Exception | None = None):
        self.root, self.failure = root, failure
        self.commits: list[tuple[str, str]] = []

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        if self.failure:
            raise self.failure
        assert private and exist_ok
        (self.root / repo_id).mkdir(parents=True, exist_ok=True)

    def upload_folder(
        self, *, repo_id: str, folder_path: Path, commit_message: str, delete_patterns: list[str]
    ) -> SimpleNamespace:
        if self.failure:
            raise self.failure
        assert (self.root / repo_id).is_dir(), "prepared before"
        for file in [file for file in (self.root / repo_id).rglob("*") if file.is_file()]:
            if any(fnmatch.fnmatch(str(file.relative_to(self.root / repo_id)), pattern) for pattern in delete_patterns):
                file.unlink()
        shutil.copytree(folder_path, self.root / repo_id, dirs_exist_ok=True)
        self.commits.append((repo_id, commit_message))
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")


@pytest.fixture
def online(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def answer(status: int) -> HfHubHTTPError:
    response = SimpleNamespace(headers={}, request=None, status_code=status)
    return HfHubHTTPError("the hub says no", response=response)  # type: ignore[arg-type]


def test_a_folder_arrives_whole(online, tmp_path):
    folder, api = tmp_path / "exported", LocalHub(tmp_path / "hub")
    (folder / "image_tokenizer").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "README.md", "image_tokenizer/model.safetensors"):
        (folder / name).write_text(name)
    prepare_repository("team/janus-sft", api=api)
    assert list((tmp_path / "hub" / "team" / "janus-sft").iterdir()) == [], "made before the work"
    assert push_folder(folder, "team/janus-sft", "step 30", api) == "https://hub/team/janus-sft/commit/1"
    arrived = {file.relative_to(tmp_path / "hub/team/janus-sft") for file in (tmp_path / "hub").rglob("*") if file.is_file()}
    assert arrived == {file.relative_to(folder) for file in folder.rglob("*") if file.is_file()}
    assert api.commits == [("team/janus-sft", "step 30")]


def test_weights_of_an_earlier_upload_are_deleted(online, tmp_path):
    folder, there = tmp_path / "exported", tmp_path / "hub" / "team" / "janus-sft"
    old = ["model-00001-of-00002.safetensors", "model.safetensors.index.json", "adapter_config.json", "image/m.safetensors"]
    for where, names in ((there, [*old, "LICENSE"]), (folder, ["model.safetensors"])):
        for name in names:
            (where / name).parent.mkdir(parents=True, exist_ok=True)
            (where / name).write_text(name)
    push_folder(folder, "team/janus-sft", "step 60", LocalHub(tmp_path / "hub"))
    assert sorted(file.name for file in there.rglob("*") if file.is_file()) == ["LICENSE", "model.safetensors"]


def test_what_cannot_be_pushed_is_refused_before_the_export(online, tmp_path, monkeypatch):
    api = LocalHub(tmp_path)
    for name in ("team/janus/sft", "team/jan us", "-x/y"):
        with refused(f"--push-to-hub {name}", "ORG/NAME"):
            prepare_repository(name, api=api)
    with refused("must be ORG/NAME, for example my-team/janus"):
        prepare_repository("janus", api=api)
    with refused("/models/Janus-Pro-7B", "--base-id ORG/NAME"):
        prepare_repository("team/janus", base="/models/Janus-Pro-7B", api=api)
    prepare_repository("team/janus", base="deepseek-ai/Janus-Pro-7B", api=api)
    monkeypatch.setattr(hub, "get_token", lambda: None)
    with refused("no token", "hf auth login", "HF_TOKEN"):
        prepare_repository("team/janus")


def test_offline_is_refused_at_once(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with refused("HF_HUB_OFFLINE=1 is set", "HF_HUB_OFFLINE=0", "hf upload"):
        prepare_repository("team/janus", api=LocalHub(tmp_path))


@pytest.mark.parametrize("status", [401, 403])
def test_a_token_without_the_right_is_named(online, tmp_path, status):
    api = LocalHub(tmp_path, answer(status))
    with refused(f"refuses this token (HTTP {status})", "hf auth login", "may write to team"):
        prepare_repository("team/janus", api=api)
    folder = tmp_path / "an export"
    folder.mkdir()
    with refused(f"is complete; to upload it later, type: hf upload team/janus '{folder}'"):
        push_folder(folder, "team/janus", "m", api)


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (answer(502), "answers HTTP 502: the hub says no"),
        (HTTPError("no route"), "HTTPError: no route"),
        (TimeoutError("too long"), "TimeoutError: too long"),
    ],
)
def test_a_hub_that_fails_is_not_an_error_of_the_user(online, tmp_path, failure, words):
    with pytest.raises(HubError, match=words) as caught:
        push_folder(tmp_path, "team/janus", "m", LocalHub(tmp_path, failure))
    assert "hf upload team/janus" in str(caught.value) and not isinstance(caught.value, ConfigError)
