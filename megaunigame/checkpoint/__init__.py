"""Checkpoints of the engine, and what can be read of them without it."""
