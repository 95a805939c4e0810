"""Where the labels of rows stand, and what the head says about them."""

from __future__ import annotations

import torch

from megaunigame.step.inputs import IGNORE, UnderstandInputs
from megaunigame.step.labels import label_positions, scored_labels
from tests.passes import pass_inputs

LABELS = torch.tensor([[IGNORE, IGNORE, 5, 0, IGNORE, 7, IGNORE], [IGNORE] * 7, [3, IGNORE, IGNORE, IGNORE, 0, IGNORE, IGNORE]])


def test_positions_are_in_order_and_padded_by_the_first():
    assert label_positions(LABELS).tolist() == [[2, 3, 5], [0, 0, 0], [4, 0, 0]]


def test_nothing_labeled_leaves_one_position_to_the_head():
    assert label_positions(LABELS[1:2]).tolist() == [[0]]


def test_the_first_token_is_never_scored_and_token_0_is_a_label():
    inputs = pass_inputs(UnderstandInputs, LABELS, labels=LABELS)
    assert scored_labels(inputs, inputs.label_positions).tolist() == [[5, 0, 7], [IGNORE] * 3, [0, IGNORE, IGNORE]]


def test_given_labels_stay_as_they_are():
    before = LABELS.clone()
    label_positions(LABELS)
    assert torch.equal(LABELS, before)
