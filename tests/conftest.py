"""The environment every test runs in: CPU only, one thread, no network, no compiled extension shared with other venvs.

Set before torch is imported anywhere, and inherited by the processes that tests start.
"""

from __future__ import annotations

import gc
import os
import signal
import sys

os.environ.update(
    DS_ACCELERATOR=os.environ.get("DS_ACCELERATOR", "cpu"),  # make test-gpu sets another
    OMP_NUM_THREADS="1",
    TORCH_DISTRIBUTED_DEBUG="DETAIL",  # ranks that disagree on a collective raise an error instead of waiting
    TORCH_EXTENSIONS_DIR=os.path.join(sys.prefix, "torch_extensions"),
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    MPLBACKEND="Agg",
)

if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # nohup: the runs that tests start would not hear it
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

import hypothesis  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

pytest_plugins = ["tests.faults.recording"]

torch.set_num_threads(1)

# The first example pays for imports and caches, and test machines share their cores: no per-example deadline. The same examples
# in every run: a commit passes or fails everywhere alike. `pytest --hypothesis-profile=explore` tries others.
hypothesis.settings.register_profile("same", deadline=None, derandomize=True)
hypothesis.settings.register_profile("explore", deadline=None, derandomize=False)
hypothesis.settings.load_profile("same")


def pytest_collection_finish():
    """Each engine of deepspeed collects garbage: not among the modules and tests that are there by now."""
    gc.freeze()


@pytest.fixture(scope="session")
def world():
    """A process group of one, for engines inside the test process. It stays open to the end of the process: deepspeed never
    forgets a group, and refuses its work after it was closed."""
    from megaunigame.parallel.ranks import start_world

    return start_world(1)


@pytest.fixture(autouse=True)
def environment():
    """A launch script run inside a test sets the variables of a launcher; the next test must not take them for its own."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(autouse=True)
def process_group():
    """A test that closes the process group of all tests fails itself, and not those after it."""
    was_open = torch.distributed.is_initialized()
    yield
    assert torch.distributed.is_initialized() >= was_open, "This test closed the process group. Run the script with run_script."
