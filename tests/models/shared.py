"""What the tests of all families share: tiny models, rows of both passes, copies of folders, counted calls."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from megaunigame.models.base import UnifiedModel
from megaunigame.models.causal.codes import CodeModel
from megaunigame.models.causal.model import CausalModel
from megaunigame.registry import available, find
from megaunigame.step.inputs import IGNORE
from megaunigame.step.labels import label_positions
from megaunigame.step.requests import GENERATE, UNDERSTAND, RowRequest, plan_from
from megaunigame.step.rows import GenerateRow, UnderstandRow
from tests.tiny import write_tiny

FAMILIES = available("models", UnifiedModel)
CODE_FAMILIES = [name for name in FAMILIES if find("models", name, UnifiedModel).has_codes]
ONE_BY_ONE = [name for name in FAMILIES if issubclass(find("models", name, UnifiedModel), CodeModel)]
"""Families that draw codes in an order, each from those before it."""
TOKEN_FAMILIES = [name for name in CODE_FAMILIES if find("models", name, UnifiedModel).reads_codes]
"""Families whose codes are tokens of the vocabulary."""
LENGTH = 160
CORPUS = ["what color is the cube left of the red ball ?", "a small green cone behind two blue balls"] * 5
TURNS = [("what is this ?", "a red ball"), ("how many ?", "two"), ("what color is the cube ?", "blue")]
PLAN = plan_from([RowRequest("u", UNDERSTAND, "s", 2), RowRequest("g", GENERATE, "s", 2, takes_source=True)])
ALL_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TARGETS = {
    "show_o": ("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"),
    "bagel": (*ALL_TARGETS, *(f"{name}_moe_gen" for name in ALL_TARGETS)),
}
"""Linear layers of a language model where they are others than `ALL_TARGETS`."""
SIDES = {"image_size": 16, "source_size": 12}
PICTURES = {"emu3": SIDES, "emu3_5": SIDES, "chameleon": SIDES, "show_o": {"source_size": 12}, "bagel": SIDES}
"""What a family's folder needs beyond what every family's does."""


def write_clear(name, path):
    """A tiny model whose weights are so large that different inputs give clearly different outputs."""
    frozen = find("models", name, CausalModel).keys.frozen
    factor = lambda weight: 1.0 if weight.startswith(frozen) else 3.0  # noqa: E731
    return write_tiny(name, path, CORPUS, factor=factor, settings=PICTURES.get(name))


def built(family, folder, *, max_length, attention="sdpa", gradient_checkpointing=False):
    """A model of `folder` as the engine constructs it: without weights, without its frozen tokenizer."""
    processor = family.open_processor(str(folder), max_length=max_length)
    return family.build(str(folder), processor, attention=attention, gradient_checkpointing=gradient_checkpointing)


def understand(subject, *rows):
    """Inputs of the understand pass; `subject` is a model or a processor."""
    return getattr(subject, "processor", subject).collate(PLAN, UNDERSTAND, rows, [0] * len(rows), ["key"] * len(rows))


def generate(subject, *rows):
    """Inputs of the generate pass."""
    return getattr(subject, "processor", subject).collate(PLAN, GENERATE, rows, [1] * len(rows), ["key"] * len(rows))


def outputs(model, picture):
    """What both passes and the decoder make of two pictures, in one vector."""
    with torch.no_grad():
        asked = model(understand(model, UnderstandRow([picture(0)], [("what ?", "a ball")])))
        drawn = model(generate(model, GenerateRow("a cube", picture(1))))
        return torch.cat([asked.loss_sum, drawn.loss_sum, model.decode(drawn.hidden).pixels.flatten()])


def same_logits(model, theirs, picture):
    """Fails where the model of transformers says something else about a question and its picture."""
    inputs = model.processor.prompt_inputs([[picture(0)]], ["what ?"])
    given = {"input_ids": inputs.tokens, "attention_mask": inputs.attention.long()}
    with torch.no_grad():
        logits = theirs(**given, pixel_values=inputs.images.flatten(0, 1)).logits
        ours = model.lm_head(model._read(model.embed(inputs), inputs.attention))
    torch.testing.assert_close(ours[inputs.attention], logits[inputs.attention], rtol=1e-4, atol=1e-4)


def generated(model, picture):
    """What the generate pass makes of two pictures, each drawn from itself."""
    rows = [GenerateRow("a cube", picture(0), picture(0)), GenerateRow("a ball", picture(1), picture(1))]
    with torch.no_grad():
        return model(generate(model, *rows), predict=model.has_codes)


def states(model, inputs):
    """(B, S, D): hidden states of understand rows, or of questions."""
    given = {"opened": model.opened(inputs), "positions": model.positions(inputs)}
    return model._read(model.embed(inputs), inputs.attention, **given)


def losses_of_training(module, loss_of, *, steps, lr):
    """The loss before each of some updates of all parameters."""
    optimizer, losses = torch.optim.AdamW(module.parameters(), lr=lr), []
    for _ in range(steps):
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def greedy(logits):
    return logits.argmax(-1)


def words(processor, inputs, row=0):
    """The text of a row, special tokens included."""
    return processor.tokenizer.decode(inputs.tokens[row][inputs.attention[row]].tolist())


def left_padded(inputs, extra):
    """The same rows with the padding moved to the front, `extra` positions of it added."""
    padding = (~inputs.attention).sum(1).tolist()
    for name, fill in (("tokens", 0), ("labels", IGNORE), ("attention", False), ("image_positions", False)):
        rows = F.pad(getattr(inputs, name), (extra, 0), value=fill)
        setattr(inputs, name, torch.stack([row.roll(count) for row, count in zip(rows, padding, strict=True)]))
    inputs.label_positions, inputs.front_padding = label_positions(inputs.labels), True
    return inputs


def copied(folder, path):
    """A copy of the folder without the weights next to config.json."""
    shutil.copytree(folder, path, dirs_exist_ok=True)
    (path / "model.safetensors").unlink()
    return path


def with_replaced(folder, path, old, new):
    """A copy of the folder in which some bytes are others, in every file."""
    shutil.copytree(folder, path, dirs_exist_ok=True)
    for file in filter(Path.is_file, path.rglob("*")):
        file.write_bytes(file.read_bytes().replace(old, new))
    return path


def frozen_names(family, path):
    """Names of the frozen tokenizer with their prefix, which those in a folder for it alone do not have."""
    prefix = family.keys.frozen if family.frozen_folder else ""
    return {prefix + name for name in family.frozen_weights(str(path)).names()}


def save_weights(family, state, path):
    """All weights under our names into the one or two files of a model folder."""
    frozen = {n for n in state if n.startswith(family.keys.frozen)} if family.frozen_folder else set()
    save_file({n: v.contiguous() for n, v in state.items() if n not in frozen}, path / "model.safetensors")
    if family.frozen_folder:
        bare = {n.removeprefix(family.keys.frozen): state[n].contiguous() for n in frozen}
        save_file(bare, path / family.frozen_folder / "model.safetensors")


def saved_weights(family, path):
    """The inverse of `save_weights`."""
    state = load_file(path / "model.safetensors")
    if family.frozen_folder:
        frozen = load_file(path / family.frozen_folder / "model.safetensors")
        state |= {family.keys.frozen + name: value for name, value in frozen.items()}
    return state


def counted_calls(module):
    """A list that grows by one with every forward of `module`."""
    calls = []
    module.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls
