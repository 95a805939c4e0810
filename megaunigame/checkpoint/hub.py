"""Puts an exported folder into a repository of the Hugging Face Hub."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError  # the last: of the library it asks with
from huggingface_hub.utils import validate_repo_id

from megaunigame.errors import ConfigError, HubError

OLD_WEIGHTS = ["*.safetensors*", "adapter_*"]
"""Patterns of files in a repository."""
REFUSED = (401, 403)
"""Answers of a server that knows no such token, or gives it no right."""


def prepare_repository(repo_id: str, base: str = "", api: HfApi | None = None) -> None:
    """See that `repo_id` (ORG/NAME) is there and the token is known, before the work of an export; one that is not there is
    made, private. Whether the token may write into one that exists shows only in the upload.

    `base`: how adapters name their base model. Raises ConfigError: offline, no legal id, no token, no right to make it, or a
    base that nobody else can find; HubError when the Hub does not answer.
    """
    if constants.HF_HUB_OFFLINE:
        raise ConfigError(
            f"--push-to-hub {repo_id} needs the network, and HF_HUB_OFFLINE=1 is set. Type HF_HUB_OFFLINE=0 in front of the "
            "command; or leave out --push-to-hub, and upload the folder later: hf upload ID FOLDER."
        )
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ConfigError(f"--push-to-hub {repo_id}: {error} Give ORG/NAME, for example my-team/janus-sft.") from error
    if "/" not in repo_id:
        raise ConfigError(f"--push-to-hub {repo_id} must be ORG/NAME, for example my-team/{repo_id}.")
    if base and Path(base).is_absolute():
        raise ConfigError(
            f"The adapters name their base model by a folder of this machine, {base}, which nobody finds who downloads them. "
            "Type --base-id ORG/NAME with the id of the base on the Hub."
        )
    if api is None and get_token() is None:
        raise ConfigError(
            f"--push-to-hub {repo_id}: no token. Type `hf auth login` with a token that may write, or set HF_TOKEN to it."
        )
    with _asking(repo_id):
        (api or HfApi()).create_repo(repo_id, private=True, exist_ok=True)


def push_folder(folder: Path, repo_id: str, message: str, api: HfApi | None = None) -> str:
    """Upload all files of `folder` in one commit; returns its address. `message`: of the commit.

    The same commit deletes weights and adapters of an earlier upload that `folder` does not have: transformers would load them.

    Raises ConfigError and HubError as `prepare_repository`: the folder stays, and the error says how to upload it later.
    """
    upload = shlex.join(["hf", "upload", repo_id, str(folder)])
    with _asking(repo_id, f" {folder} is complete; to upload it later, type: {upload}"):
        commit = (api or HfApi()).upload_folder(
            repo_id=repo_id, folder_path=folder, commit_message=message, delete_patterns=OLD_WEIGHTS
        )
        return str(commit.commit_url)


@contextmanager
def _asking(repo_id: str, later: str = "") -> Iterator[None]:
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in REFUSED:
            raise ConfigError(
                f"--push-to-hub {repo_id}: the Hub refuses this token (HTTP {status}). Type `hf auth login` with a token that "
                f"may write to {repo_id.partition('/')[0]}, or give a name of your own.{later}"
            ) from error
        raise HubError(f"--push-to-hub {repo_id}: the Hub answers HTTP {status}: {_line(error)}.{later}") from error
    except (HTTPError, OSError) as error:
        raise HubError(
            f"--push-to-hub {repo_id}: the Hub does not answer ({type(error).__name__}: {_line(error)}).{later}"
        ) from error


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0].rstrip(".")
