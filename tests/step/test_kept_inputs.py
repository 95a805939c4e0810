"""Inputs come back from plain tensors and JSON as they were."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from megaunigame.step.inputs import GenerateInputs, PassInputs, Taps, UnderstandInputs
from megaunigame.step.kept_inputs import from_parts, to_parts

COMMON = {
    "tokens": torch.arange(6).view(2, 3),
    "attention": torch.tensor([[True, True, False], [True, True, True]]),
    "terms": torch.tensor([0, 1]),
    "counts": torch.tensor([2.0, 0.0]),
    "image_positions": torch.zeros(2, 3, dtype=torch.bool),
    "front_padding": False,
    "lengths": [2, 3],
    "keys": ["a", ""],
    "texts": [("who", "me"), ("", "")],
    "taps": Taps((0,)),
}
UNDERSTAND = UnderstandInputs(
    **COMMON,
    labels=torch.ones(2, 3, dtype=torch.long),
    label_positions=torch.zeros(2, 1, dtype=torch.long),
    images=torch.rand(2, 1, 3, 4, 4, requires_grad=True),
    image_valid=torch.ones(2, 1, dtype=torch.bool),
    source_codes=torch.ones(2, 1, 4, dtype=torch.long),
    source_coded=[True, False],
    gradient_rows=slice(0, 1),
)
GENERATE = GenerateInputs(**COMMON, targets=torch.rand(2, 3, 4, 4), emphasis=torch.rand(2, 4, 4).bfloat16())


@pytest.mark.parametrize("inputs", [UNDERSTAND, GENERATE], ids=["understand", "generate"])
def test_what_is_kept_comes_back(inputs: PassInputs):
    tensors, values = to_parts(inputs)
    back = from_parts(inputs.pass_name, tensors, json.loads(json.dumps(values)))
    assert type(back) is type(inputs) and back.taps is None and getattr(back, "gradient_rows", None) is None
    for field in dataclasses.fields(inputs):
        ours, theirs = getattr(inputs, field.name), getattr(back, field.name)
        if isinstance(ours, torch.Tensor):
            assert torch.equal(ours, theirs) and ours.dtype == theirs.dtype and not theirs.requires_grad, field.name
        elif field.name not in ("taps", "gradient_rows"):
            assert ours == theirs, field.name


def test_parts_of_another_pass_are_refused():
    tensors, values = to_parts(GENERATE)
    with pytest.raises(TypeError):
        from_parts("understand", tensors, values)
    with pytest.raises(KeyError):
        from_parts("dream", tensors, values)
