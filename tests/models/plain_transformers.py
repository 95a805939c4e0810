"""Reads exported folders with transformers alone, and writes down what it sees: `python plain_transformers.py FOLDERS`.

Runs in a process that cannot import megaunigame. Every folder has the model in `model/`, pictures `picture0.png` and
`picture1.png`, and `asked.json`; the answer is `seen.pt`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path[:] = [entry for entry in sys.path if entry not in ("", str(Path(__file__).resolve().parent))]


class Blocked:
    """Finds megaunigame before anything else does, and refuses it."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("megaunigame", "tests"):
            raise ModuleNotFoundError(f"{name} is blocked")


sys.meta_path.insert(0, Blocked())
try:
    import megaunigame  # noqa: F401
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("megaunigame can be imported: this process proves nothing")

import torch  # noqa: E402
from PIL import Image  # noqa: E402
from transformers import (  # noqa: E402
    AutoProcessor,
    ChameleonForConditionalGeneration,
    Emu3ForConditionalGeneration,
    JanusForConditionalGeneration,
    set_seed,
)

CLASSES = {
    "JanusProcessor": JanusForConditionalGeneration,
    "Emu3Processor": Emu3ForConditionalGeneration,
    "ChameleonProcessor": ChameleonForConditionalGeneration,
}


def template(processor):
    """ChameleonProcessor does not take the one of its folder; its tokenizer does."""
    return processor.chat_template or processor.tokenizer.chat_template


def question(processor, question, pictures):
    content = [*({"type": "image", "image": picture} for picture in pictures), {"type": "text", "text": question}]
    return [{"role": "user", "content": content}]


@torch.no_grad()
def asked(processor, model, text, pictures):
    """Ids, by both ways, and logits of a question about some pictures."""
    chat = question(processor, text, pictures)
    options = {"add_generation_prompt": True, "chat_template": template(processor)}
    whole = processor.apply_chat_template(chat, **options, tokenize=True, return_dict=True, return_tensors="pt")
    prompt = processor.apply_chat_template(chat, **options)
    by_hand = processor(text=prompt, images=pictures or None, return_tensors="pt")
    pixels = whole.get("pixel_values")
    return {
        "ids": whole["input_ids"][0].tolist(),
        "ids by hand": by_hand["input_ids"][0].tolist(),
        "placeholder": processor.tokenizer.image_token_id,
        "logits": model(**whole).logits[0],
        "pixels": None if pixels is None else torch.as_tensor(pixels),
    }


def talk(processor, turns, system):
    """Ids of a whole conversation, answers included."""
    chat = [{"role": "system", "content": [{"type": "text", "text": system}]}] if system else []
    for number, text in enumerate(turns):
        chat.append({"role": ("user", "assistant")[number % 2], "content": [{"type": "text", "text": text}]})
    tokens = processor.apply_chat_template(chat, template(processor), tokenize=True, return_dict=True, return_tensors="pt")[
        "input_ids"
    ]
    return tokens[0].tolist()


def drawn_by_janus(processor, model, text):
    prompt = processor.apply_chat_template(question(processor, text, []), add_generation_prompt=True)
    inputs = processor(text=prompt, generation_mode="image", return_tensors="pt")
    codes = model.generate(**inputs, generation_mode="image", do_sample=False, guidance_scale=3.0)
    return inputs["input_ids"][0].tolist(), codes[0].tolist()


def drawn_by_emu3(processor, model, text, side):
    request = {"return_for_image_generation": True, "ratio": "1:1", "image_area": side**2, "return_tensors": "pt"}
    inputs, without = processor(text=[text], **request), processor(text=[""], **request)
    height, width = map(int, inputs.pop("image_sizes")[0])
    start, length, names = inputs["input_ids"].shape[1], height * (width + 1), processor.tokenizer

    def allowed(batch, ids):
        drawn = len(ids) - start
        if drawn >= length:
            return [[names.eof_token_id, names.eoi_token_id, names.eos_token_id][min(drawn - length, 2)]]
        line_end = names.convert_tokens_to_ids("<|extra_200|>")
        return [line_end] if drawn % (width + 1) == width else model.vocabulary_mapping.image_tokens

    tokens = model.generate(
        **inputs,
        max_new_tokens=length + 3,
        prefix_allowed_tokens_fn=allowed,
        do_sample=False,
        guidance_scale=3.0,
        negative_prompt_ids=without["input_ids"],
        negative_prompt_attention_mask=without["attention_mask"],
    )
    pixels = model.decode_image_tokens(image_tokens=tokens[:, start:], height=height, width=width)
    assert pixels.shape == (1, 3, side, side)
    return inputs["input_ids"][0].tolist(), tokens[0, start : start + length].tolist()


def drawn(processor, model, text, side):
    """Ids of a request and what is drawn; None where transformers draws nothing."""
    kind = type(processor).__name__
    if kind == "ChameleonProcessor":
        return None
    return drawn_by_janus(processor, model, text) if kind == "JanusProcessor" else drawn_by_emu3(processor, model, text, side)


def see(home: Path) -> None:
    wanted = json.loads((home / "asked.json").read_text())
    processor = AutoProcessor.from_pretrained(home / "model")
    model = CLASSES[type(processor).__name__].from_pretrained(home / "model", dtype=torch.float32).eval()
    pictures = [Image.open(home / f"picture{number}.png").convert("RGB") for number in range(2)]
    set_seed(0)
    seen = {
        "asked": [asked(processor, model, wanted["question"], pictures[:count]) for count in range(3)],
        "talk": talk(processor, wanted["talk"], wanted["system"]),
        "drawn": drawn(processor, model, wanted["drawn"], wanted["side"]),
        "class": type(processor).__name__,
        "ends": [model.generation_config.eos_token_id, model.generation_config.pad_token_id],
    }
    torch.save(seen, home / "seen.pt")


if __name__ == "__main__":
    for folder in sorted(Path(sys.argv[1]).iterdir()):
        see(folder)
