"""The device of a process, and how its kernels round."""

from __future__ import annotations

import functools
import logging
import os

import torch

from megaunigame.errors import ConfigError

log = logging.getLogger(__name__)


def choose_device(local_rank: int) -> torch.device:
    """The GPU number `local_rank` of this machine; the CPU only if DS_ACCELERATOR=cpu is set.

    Raises ConfigError if no GPU can be used: a job of many nodes must not run on CPUs because a driver is too old.
    """
    if os.environ.get("DS_ACCELERATOR") == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(
            f"No GPU can be used: {_why_not()}. To run on the CPU, type DS_ACCELERATOR=cpu before the command; otherwise "
            "install a driver and a torch that fit each other (python -m torch.utils.collect_env shows both)."
        )
    gpus = torch.cuda.device_count()
    if local_rank >= gpus:
        raise ConfigError(
            f"This is process {local_rank} of its machine, counted from 0, which shows {gpus} GPU(s). Start {gpus} process(es) "
            f"on each machine, for example deepspeed --num_gpus {gpus} ..."
        )
    return torch.device("cuda", local_rank)


def _why_not() -> str:
    if torch.version.cuda is None and torch.version.hip is None:
        return f"torch {torch.__version__} is built for the CPU"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:  # `is_available` hides the reason
        return f"torch {torch.__version__} says: {str(error).strip().splitlines()[0].rstrip('.')}"
    return f"torch {torch.__version__} finds none"


def configure(device: torch.device, *, deterministic: bool) -> None:
    """How kernels compute in this process. Call it before the first use of the device.

    On a GPU, float32 convolutions and products do not use TF32: in a bf16 run the frozen tokenizers are float32, and TF32
    changes which codes they choose. `deterministic`: torch replaces or refuses kernels whose result depends on the order of
    threads.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
        # Containers may enable TF32.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        os.environ["FLASH_ATTENTION_DETERMINISTIC"] = "1"  # read by transformers; the package's kernels are not torch's
        torch.use_deterministic_algorithms(True)


@functools.cache
def capability(device: torch.device) -> tuple[int, int]:
    """Compute capability of a GPU: (8, 0) for an A100, (9, 0) for an H100."""
    return torch.cuda.get_device_capability(device)


def cpu_computes_bf16() -> bool:
    """Whether this CPU has instructions that PyTorch uses for bfloat16. Without, a product of matrices takes about fifty times
    as long as in float32 (measured on an AMD EPYC with AVX2)."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def warn_of_slow_bf16(device: torch.device) -> None:
    """For a model that computes in bfloat16."""
    if device.type == "cpu" and not cpu_computes_bf16():
        log.warning("This CPU computes in bfloat16 many times slower than in float32: type engine.precision=fp32.")


def use_expandable_segments() -> None:
    """Let torch's allocator grow its blocks: fixed ones fragment with gathers of many sizes and rows of many lengths.

    Call it before the first allocation on a GPU. Does not override the user's setting.
    """
    if not os.environ.get("PYTORCH_ALLOC_CONF") and not os.environ.get("PYTORCH_CUDA_ALLOC_CONF"):
        os.environ["PYTORCH_ALLOC_CONF"] = os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
