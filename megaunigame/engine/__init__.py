"""Everything that talks to DeepSpeed. Importing it picks the accelerator before deepspeed does: its own guess warns."""

import os
import warnings

import torch

if not torch.cuda.is_available() and "DS_ACCELERATOR" not in os.environ:
    # For tools that need no GPU, such as an export. The variable does not stay: for a run it means that a user asked for CPUs.
    os.environ["DS_ACCELERATOR"] = "cpu"
    from deepspeed.accelerator import get_accelerator

    get_accelerator()
    del os.environ["DS_ACCELERATOR"]
# deepspeed calls collectives under their former names; torch would say so in every step of every rank.
warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
