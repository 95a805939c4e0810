"""The generate pass of BLIP3o-NEXT: two losses, the condition, dropped conditions, one weight for embedding and head."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from megaunigame.models.diffusion import flow
from megaunigame.step.rows import GenerateRow, UnderstandRow
from tests.models.shared import TURNS, generate, understand

FAMILY = "blip3o_next"


def plain_tokens(model, inputs, row, codes):
    """Tokens of a generate row without padding, its source and its picture as codes."""
    tokens = inputs.tokens[row].clone()
    if inputs.image_positions[row].any():
        tokens[inputs.image_positions[row]] = model.vision_tokenizer.encode(inputs.images[row]).flatten() + model.grid.first
    return torch.cat([tokens[inputs.attention[row]], codes + model.grid.first])


def test_the_loss_is_that_of_the_codes_and_as_many_times_that_of_the_latents(model, picture):
    inputs = generate(model, GenerateRow("a cube", picture(0)), GenerateRow("its depth", picture(1), picture(2)), None)
    latents, codes = model.encode_target(inputs.targets), model.codes_of(inputs.targets)
    u, noise = torch.tensor([0.2, 0.9, 0.5]), torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = model.match(inputs, codes, latents, u, noise)
        for row, sigma in enumerate((0.8, 0.1)):
            tokens = plain_tokens(model, inputs, row, codes[row])
            states = model.language_model(input_ids=tokens[None]).last_hidden_state[0]
            logits = F.linear(states, model.model.embed_tokens.weight)[-10:-1]
            of_codes = F.cross_entropy(logits, tokens[-9:], reduction="sum")
            noisy = (1 - sigma) * latents[row] + sigma * noise[row]
            velocity = model.velocity(noisy[None], torch.tensor([1000 * sigma]), model.condition(states[None, -10:]))
            of_latents = (velocity[0] - (noise[row] - latents[row])).square().mean()
            assert output.loss_sum[row].item() == pytest.approx((of_codes + 9 * of_latents).item(), rel=1e-4)
            torch.testing.assert_close(output.hidden[row], states[-10:], rtol=1e-4, atol=1e-4)
    assert output.loss_sum[2] == 0 and output.hidden.shape == (3, 10, 64) and torch.equal(output.target, latents)
    assert inputs.counts.tolist() == [9, 9, 0]


def test_the_state_of_the_last_code_is_part_of_the_condition(model, picture):
    inputs = generate(model, GenerateRow("a cube", picture(0)))
    latents, codes = model.encode_target(inputs.targets), model.codes_of(inputs.targets)
    others = codes.clone()
    others[:, -1] = (codes[:, -1] + 1) % 48
    with torch.no_grad():
        drawn = flow.evaluation_draw(inputs.keys, latents)
        first, second = (model.match(inputs, chosen, latents, *drawn).hidden for chosen in (codes, others))
    assert torch.equal(first[:, :-1], second[:, :-1]) and not torch.allclose(first[:, -1], second[:, -1])


def test_a_row_without_text_has_no_condition_and_others_keep_theirs(model, picture):
    rows = (
        GenerateRow("x", picture(0), unconditional=True),
        GenerateRow("", picture(0)),
        GenerateRow("", picture(0), picture(1)),
    )
    inputs = generate(model, *rows, None)
    hidden = torch.ones(4, 10, 64)
    assert model.kept(hidden, inputs).flatten(1).sum(1).tolist() == [0, 640, 640, 640]
    seen = []
    model.model.diffusion_connector.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    model(inputs)
    assert (seen[0][0] == 0).all() and (seen[0][1].abs().sum(-1) > 0).all()


def test_the_embedding_is_the_head_and_gets_both_gradients(model, picture):
    inputs = understand(model, UnderstandRow([picture(0)], TURNS))
    weight = model.model.embed_tokens.weight
    assert model.lm_head.weight is weight and "lm_head.weight" not in model.state_dict()
    model(inputs).loss_sum.sum().backward()
    both = weight.grad.clone()
    tokens = inputs.tokens[0].clone()
    tokens[inputs.image_positions[0]] = model.vision_tokenizer.encode(inputs.images[0]).flatten() + model.grid.first
    read, scored = (weight.detach().clone().requires_grad_() for _ in range(2))
    states = model.language_model(inputs_embeds=F.embedding(tokens[None], read)).last_hidden_state[0]
    F.cross_entropy(F.linear(states[:-1], scored), inputs.labels[0, 1:], reduction="sum").backward()
    torch.testing.assert_close(both, read.grad + scored.grad, rtol=1e-4, atol=1e-5)
    assert read.grad.abs().max() > 1e-3 and scored.grad.abs().max() > 1e-3


def test_training_draws_from_the_global_generator_and_evaluation_does_not(model, picture):
    inputs = generate(model, GenerateRow("a cube", picture(0)), GenerateRow("a ball", picture(1)))

    def loss(seed):
        torch.manual_seed(seed)
        with torch.no_grad():
            return model(inputs).loss_sum

    assert torch.equal(loss(0), loss(1))
    model.train()
    assert torch.equal(loss(0), loss(0)) and not torch.equal(loss(0), loss(1))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_checkpointing_reaches_the_transformer(tiny, checkpointing):
    model = tiny.load(gradient_checkpointing=checkpointing)
    assert model.dit.gradient_checkpointing == checkpointing
