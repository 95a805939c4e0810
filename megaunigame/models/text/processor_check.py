"""Whether transformers' processor of an exported folder makes the token ids of our rows."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from transformers import AutoProcessor

from megaunigame.models.text.processor import RowProcessor
from megaunigame.storage.foreign_text import one_line

QUESTION = "what is this ?"
KINDS = {
    "text only": (0, "{question}"),
    "a control token in a text": (0, "{end} {question}{end}"),
    "one picture": (1, "{question}"),
    "two pictures": (2, "{question}"),
}
"""Name -> number of pictures, question."""


def differences(folder: Path, rows: RowProcessor) -> list[str]:
    """What is not the same, one line for each kind of conversation; `rows`: our processor of the same folder.

    Pictures are squares of the model's side; placeholders of pictures count as equal.
    """
    processor = AutoProcessor.from_pretrained(str(folder), trust_remote_code=False)
    # transformers' processor of some families does not take the template; its tokenizer has read it too.
    template = processor.chat_template or processor.tokenizer.chat_template
    found = []
    for kind, (count, pattern) in KINDS.items():
        question = pattern.format(question=QUESTION, end=rows.tokenizer.eos_token)
        pictures = [torch.full((3, rows.source_size, rows.source_size), 40 * (1 + n), dtype=torch.uint8) for n in range(count)]
        inputs = rows.prompt_inputs([pictures], [question])
        ours, is_image = inputs.tokens[inputs.attention], inputs.image_positions[inputs.attention]
        shown = [{"type": "image", "image": Image.fromarray(picture.permute(1, 2, 0).numpy())} for picture in pictures]
        chat = [{"role": "user", "content": [*shown, {"type": "text", "text": question}]}]
        try:
            theirs = processor.apply_chat_template(
                chat, template, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
            )["input_ids"][0]
        except Exception as error:  # a template can raise anything, and so does the sandbox it runs in
            found.append(f"{kind}: the chat template fails ({type(error).__name__}: {one_line(error)})")
            continue
        if len(theirs) != len(ours):
            found.append(f"{kind}: {len(theirs)} tokens instead of {len(ours)}")
            continue
        is_image = is_image | (theirs == processor.tokenizer.image_token_id)
        if not torch.equal(theirs[~is_image], ours[~is_image]):
            found.append(f"{kind}: other token ids")
    return found
