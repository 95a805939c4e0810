"""Runs tests in forks of one process that has imported the large frameworks: a run of a test file then costs seconds less.

No module of the repository is among what a fork keeps: each run imports the code of the tree that it is given.
"""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

FRAMEWORKS = (
    *("torch", "torch.distributed.nn", "torch.utils.tensorboard", "torch._dynamo", "transformers", "peft", "deepspeed"),
    *(
        "open_clip",
        "webdataset",
        "cv2",
        "PIL.Image",
        "omegaconf",
        "hypothesis",
        "pytest",
        "matplotlib.pyplot",
        "safetensors.torch",
    ),
    *("deepspeed.runtime.zero.stage3", "deepspeed.runtime.zero.stage_1_and_2", "peft.tuners.lora"),
    *("transformers.models.janus.modeling_janus", "transformers.models.llama.modeling_llama"),
)
OURS = ("megaunigame", "data_prep", "launch", "tests")
OPTIONS = ("-x", "-q", "-m", "", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:randomly")
"""`-m ""`: a test that is named runs, whatever its marks."""


def import_frameworks() -> None:
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for name in FRAMEWORKS:
        importlib.import_module(name)
    gc.freeze()  # a collection in a fork would touch, and so copy, all that was imported


def run_tests(tree: Path, tests: list[str], log: Path, limit: float, **environment: str) -> tuple[int | None, float]:
    """Exit code of pytest (None: not finished in `limit` seconds) and seconds. What it says goes to `log`."""
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _be_pytest(tree, tests, log, environment)
    code = None
    try:
        while code is None and time.monotonic() < started + limit:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                code = os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
    finally:  # also when this process is asked to end
        if code is None:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    return code, time.monotonic() - started


def _be_pytest(tree: Path, tests: list[str], log: Path, environment: dict[str, str]) -> NoReturn:
    code = 3
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.setsid()  # processes that a test starts are stopped with it
        sink = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for target, source in ((0, nothing), (1, sink), (2, sink)):
            os.dup2(source, target)
        os.chdir(tree)
        os.environ.update(environment, PYTHONPATH=str(tree))
        # Not a checkout that is installed or in PYTHONPATH: the tree takes its place.
        others = [path for path in sys.path if not (Path(path or ".") / "megaunigame" / "__init__.py").is_file()]
        sys.path[:] = [str(tree), *others]
        for name in [name for name in sys.modules if name.split(".")[0] in OURS]:
            del sys.modules[name]
        importlib.invalidate_caches()
        import pytest

        code = int(pytest.main([*OPTIONS, *tests]))
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)
