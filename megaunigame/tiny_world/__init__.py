"""Tools that make a tiny Janus from nothing, up to the point where the ordinary trainer takes over.

In order: text tokenizer, image tokenizer (VQ), vision tower warm-up, the independent oracle that scores generated
pictures, and the starting folder. Each stage is restartable and a function of its seed and its number of steps.
"""
