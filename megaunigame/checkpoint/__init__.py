"""Checkpoints of the engine. Import the engine first: it picks the accelerator before deepspeed's own guess can warn."""

import megaunigame.engine  # noqa: F401
