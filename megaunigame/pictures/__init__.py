"""Pictures as a viewer shows them: upright, opaque, one frame, 8 bits, within a limit of pixels."""
