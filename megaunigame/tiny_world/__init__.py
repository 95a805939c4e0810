"""Tools that make a tiny Janus from scratch, up to the start folder of the ordinary trainer.

In order: text tokenizer, image tokenizer (VQ), vision tower warm-up, the independent oracle that scores generated
pictures, and the start folder. Each part is restartable and a function of its seed and its number of steps.
"""
