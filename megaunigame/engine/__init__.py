"""Everything that talks to DeepSpeed. Importing it picks the accelerator before deepspeed does: its own guess warns."""

import os
import warnings

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
# deepspeed calls collectives under their former names; torch would say so in every step of every rank.
warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
