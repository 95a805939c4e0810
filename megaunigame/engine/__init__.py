"""Everything that talks to DeepSpeed. Importing it picks the accelerator before deepspeed does: its own guess warns."""

import os
import warnings

import torch

if not torch.cuda.is_available() and "DS_ACCELERATOR" not in os.environ:
    # For tools that need no GPU, such as an export. Deleted below: in a run the variable means that the user asked for CPUs.
    os.environ["DS_ACCELERATOR"] = "cpu"
    from deepspeed.accelerator import get_accelerator

    get_accelerator()
    del os.environ["DS_ACCELERATOR"]
# deepspeed calls collectives by deprecated names; torch would warn in every step of every rank.
warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
