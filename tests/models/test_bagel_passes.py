"""BAGEL's passes: two sets of weights, sources that are read twice, times and noise, adapters."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from megaunigame.checkpoint.adapter_folder import ADAPTER_SETTINGS, ADAPTER_WEIGHTS, open_adapter, peft_name
from megaunigame.config import LoraConfig, ModelConfig, load_recipe
from megaunigame.engine.parameters import choose_trainable
from megaunigame.errors import ConfigError
from megaunigame.models.bagel import flow
from megaunigame.models.bagel.autoencoder import patched, unpatched
from megaunigame.models.bagel.guiding import Guidance, guided
from megaunigame.models.bagel.language_model import DRAWING
from megaunigame.models.bagel.tables import table_rows
from megaunigame.step.requests import GENERATE, UNDERSTAND, RowRequest, plan_from
from megaunigame.step.rows import GenerateRow, UnderstandRow
from tests.models.shared import TURNS, generate, understand
from tests.multi_process.launcher import REPOSITORY

FAMILY = "bagel"


def called(model, inputs):
    """Names of the modules with weights, in the order of their calls."""
    names, calls = {module: name for name, module in model.named_modules()}, []
    hooks = [
        module.register_forward_pre_hook(lambda module, args: calls.append(names[module]))
        for module in model.modules()
        if list(module.parameters(recurse=False))
    ]
    model(inputs)
    for hook in hooks:
        hook.remove()
    return calls


def test_a_pass_calls_the_same_modules_whatever_its_rows_are(model, picture):
    """As ZeRO-3 needs it: ranks with text alone, with pictures, with nothing."""
    asked = [
        (UnderstandRow([], TURNS), UnderstandRow([], TURNS[:1])),
        (UnderstandRow([picture(0), picture(1)], TURNS), None),
        (UnderstandRow([picture(0)], TURNS, independent=True), UnderstandRow([], TURNS)),
        (None, None),
    ]
    drawn = [
        (GenerateRow("a cube", picture(0)), GenerateRow("a", picture(0), unconditional=True)),
        (GenerateRow("its depth", picture(0), picture(1)), None),
        (GenerateRow("its depth", picture(0), picture(1), unconditional=True), GenerateRow("a", picture(2))),
        (None, None),
    ]
    with torch.no_grad():
        of_asked = [called(model, understand(model, *rows)) for rows in asked]
        of_drawn = [called(model, generate(model, *rows)) for rows in drawn]
    assert all(calls == of_asked[0] for calls in of_asked) and all(calls == of_drawn[0] for calls in of_drawn)
    assert not any(DRAWING in name for name in of_asked[0])
    both = {name for name in of_drawn[0] if DRAWING in name}
    assert both == {name for name, m in model.named_modules() if DRAWING in name and list(m.parameters(recurse=False))}
    assert {name.replace(DRAWING, "") for name in both} - set(of_drawn[0]) == {"model.norm"}


def test_latent_tokens_go_through_one_set_of_weights_and_all_others_through_the_other(model, picture):
    """Weights of one set are moved: what is computed from the tokens of the text before a picture does not change."""
    inputs = generate(model, GenerateRow("a cube", picture(0), picture(1)))
    rows: list[tuple[torch.Tensor, torch.Tensor]] = []
    hook = model.language_model.layers[0].register_forward_hook(lambda m, a, out: rows.append(out))
    with torch.no_grad():
        model(inputs)
        for name, parameter in model.named_parameters():
            if DRAWING in name and ".mlp" in name:
                parameter.add_(0.1)
        model(inputs)
    hook.remove()
    assert torch.equal(rows[0][0], rows[1][0]) and not torch.allclose(rows[0][1], rows[1][1], atol=1e-2)


@pytest.mark.parametrize("part", ["images", "source_pixels"])
def test_a_source_is_read_as_latents_and_by_the_tower(model, picture, part):
    inputs = generate(model, GenerateRow("its depth", picture(0), picture(1)), GenerateRow("a cube", picture(0)))
    other = dataclasses.replace(inputs, **{part: torch.rand_like(getattr(inputs, part)) * 2 - 1})
    with torch.no_grad():
        before, after = model(inputs).hidden, model(other).hidden
    assert not torch.allclose(before[0], after[0], atol=1e-3)
    torch.testing.assert_close(before[1], after[1])


def test_requests_of_both_kinds_in_a_batch_are_what_they_are_alone(model, picture):
    plain, edit = GenerateRow("a cube", picture(0)), GenerateRow("its small depth", picture(0), picture(1))
    without = plan_from([RowRequest("g", GENERATE, "s", 1)])
    with torch.no_grad():
        together = model(generate(model, plain, edit)).loss_sum
        alone = model(model.processor.collate(without, GENERATE, [plain], [0], ["key"])).loss_sum
        own = model(generate(model, edit)).loss_sum
    torch.testing.assert_close(together, torch.cat([alone, own]), rtol=1e-5, atol=1e-4)


def test_training_draws_times_noise_and_latents_and_a_redraw_draws_nothing(model, picture):
    inputs = generate(model, GenerateRow("a cube", picture(0)))
    model.train()
    first, second = (model(inputs) for _ in range(2))
    assert not torch.equal(first.loss_sum, second.loss_sum) and not torch.equal(first.target, second.target)
    state = torch.get_rng_state()
    with torch.no_grad():
        redrawn = [model(inputs) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(redrawn[0].hidden, redrawn[1].hidden)
    assert torch.equal(redrawn[0].target, model.encode_target(inputs.targets))


def test_decoding_is_a_step_from_the_time_and_noise_of_a_redraw(model, picture):
    inputs = generate(model.train(), GenerateRow("a cube", picture(0)))
    with torch.no_grad():
        redrawn = model(inputs)
        z, hidden, patch = redrawn.target, redrawn.hidden, model.config.latent_patch_size
        delta = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1))
        moved = unpatched(delta @ model.llm2vae.weight.T, patch, *z.shape[2:])
        anchored = model.decode(hidden, delta, z).pixels
        torch.testing.assert_close(
            anchored, model.decode_target(z - model.config.flow.decode_time * moved), rtol=1e-4, atol=1e-4
        )
        torch.testing.assert_close(model.decode(hidden, None, z).pixels, model.decode_target(z))
        # A state that predicts the velocity exactly decodes to the picture.
        model.llm2vae.weight.zero_()
        model.llm2vae.weight[:, : model.config.latent_width] = torch.eye(model.config.latent_width)
        model.llm2vae.bias.zero_()
        exact = torch.zeros_like(hidden)
        exact[..., : model.config.latent_width] = patched(flow.fixed_noise(z) - z, patch)
        torch.testing.assert_close(model.decode(exact).pixels, model.decode_target(z), rtol=1e-4, atol=1e-4)


def test_patches_and_tables_have_their_places():
    latents = torch.arange(2 * 3 * 4 * 6).view(2, 3, 4, 6).float()
    tokens = patched(latents, 2)
    assert tokens.shape == (2, 6, 12) and torch.equal(unpatched(tokens, 2, 4, 6), latents)
    # The second token of the first line: rows 0 and 1, columns 2 and 3; all channels of a cell are neighbors.
    assert tokens[0, 1].tolist() == [latents[0, c, r, k].item() for r in (0, 1) for k in (2, 3) for c in range(3)]
    table = table_rows(2, 3, 8, torch.device("cpu"))
    assert table.shape == (6, 8)
    assert torch.equal(table[0, :4], table[3, :4]) and torch.equal(table[0, 4:], table[2, 4:])  # column first, then line
    torch.testing.assert_close(table[1, :4], torch.tensor([1.0, 0.01, 1.0, 0.01]).mul(1).sin().where(
        torch.tensor([True, True, False, False]), torch.tensor([1.0, 0.01, 1.0, 0.01]).cos()))  # fmt: skip


def test_guidance_shrinks_and_never_grows():
    generator = torch.Generator().manual_seed(0)
    v, textless, pictureless = torch.randn(3, 2, 5, 4, generator=generator)
    for renorm, of in (("global", (1, 2)), ("channel", (2,))):
        found = guided(v, textless, pictureless, Guidance(4.0, 2.0, 0.0, renorm))
        norms = [torch.linalg.vector_norm(each, dim=of) for each in (found, v)]
        assert (norms[0] <= norms[1] * (1 + 1e-5)).all()
    plain = guided(v, textless, pictureless, Guidance(4.0, 1.0, 0.0, "none"))
    torch.testing.assert_close(plain, textless + 4 * (v - textless))
    small = guided(v, v, v, Guidance(4.0, 2.0, 0.0, "global"))
    torch.testing.assert_close(small, v)
    assert not Guidance(1.0, 2.0, 0.0, "none").at(1.0) and not Guidance(4.0, 2.0, 0.4, "none").at(0.4)


@pytest.mark.parametrize(
    ("targets", "groups"),
    [(["q_proj", "gate_proj"], {"lm"}), (["q_proj_moe_gen", "gate_proj_moe_gen"], {"lm_gen"}), ([], {"lm", "lm_gen"})],
)
def test_adapters_name_their_set_of_weights(model, targets, groups):
    linear = sum(isinstance(module, nn.Linear) for module in model.language_model.modules())
    model.add_lora(rank=2, alpha=4, dropout=0.0, targets=targets, seed=0)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {model.group_of(name) for name in trained} == groups
    assert len(trained) == 2 * (2 * len(targets) if targets else linear)


def test_largest_rows_hold_their_latent_tokens(model):
    plan = plan_from([RowRequest("u", UNDERSTAND, "s", 1), RowRequest("g", GENERATE, "s", 2, takes_source=True)])
    inputs = model.processor.largest(plan, GENERATE)
    assert inputs.source_pixels.shape == (2, 1, 3, 16, 16) and inputs.images.shape == (2, 1, 3, 12, 12)
    assert (inputs.attention.sum(1) + 2 * model.processor.after_prompt).tolist() == [160, 160]


def test_adapters_that_no_pass_uses_are_refused(model):
    """Without a gradient they would shrink by weight decay alone."""
    plan, lora = plan_from([RowRequest("u", UNDERSTAND, "s", 1)]), ModelConfig(family=FAMILY, train="lora")
    with pytest.raises(ConfigError, match=r"into lm_gen, .* model.lora.targets=\[down_proj,gate_proj,.*v_proj\], or add"):
        choose_trainable(model, lora, plan, seed=0)


def test_where_no_adapter_has_a_pass_the_cure_is_not_to_adapt_all_layers(model):
    plan = plan_from([RowRequest("u", UNDERSTAND, "s", 1)])
    lora = ModelConfig(family=FAMILY, train="lora", lora=LoraConfig(targets=["q_proj_moe_gen"]))
    with pytest.raises(ConfigError, match=r"into lm_gen, .*\. Name other layers, or add an objective"):
        choose_trainable(model, lora, plan, seed=0)


@pytest.mark.parametrize("target", ["gate_proj", "gate_proj_moe_gen", "q_proj_moe_gen"])
def test_adapters_of_one_set_of_weights_are_opened_under_their_target(model, tmp_path, target):
    """The second MLP has the names of the first one: the module that they are in says which they are."""
    model.add_lora(rank=2, alpha=4, dropout=0.0, targets=[target], seed=0)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    save_file({peft_name(name): p.detach() for name, p in trained.items()}, tmp_path / ADAPTER_WEIGHTS)
    (tmp_path / ADAPTER_SETTINGS).write_text('{"r": 2, "lora_alpha": 4}')
    lora = LoraConfig(rank=2, alpha=4.0, targets=[target])
    assert open_adapter(str(tmp_path), lora, type(model)).names() == set(trained)
    other = dataclasses.replace(lora, targets=["up_proj"])
    with pytest.raises(ConfigError, match=rf"Type 'model.lora.targets=\[{target}\]'"):
        open_adapter(str(tmp_path), other, type(model))


def test_the_unigame_recipe_adapts_the_first_set_of_weights(model):
    recipe = load_recipe(str(REPOSITORY / "launch" / "recipes" / "bagel_7b_512_unigame_torchumm.yaml"), [])
    choose_trainable(model, recipe.model, plan_from([RowRequest("u", UNDERSTAND, "s", 1)]), seed=0)
    assert {model.group_of(name) for name, p in model.named_parameters() if p.requires_grad} == {"lm"}


@pytest.mark.parametrize(("sources", "guidance", "rows"), [(False, 1.0, 1), (False, 4.0, 2), (True, 4.0, 3), (True, 1.0, 1)])
def test_a_step_reads_a_request_once_for_each_condition(model, picture, sources, guidance, rows):
    read = []
    hook = model.language_model.register_forward_pre_hook(
        lambda module, args, given: read.append(len(given["inputs_embeds"])), with_kwargs=True
    )
    inputs = model.processor.generate_prompts(["a cube"], [picture(0)] if sources else None)
    model.sample(inputs, guidance=guidance, temperature=0.0, generator=torch.Generator().manual_seed(0))
    hook.remove()
    assert len(read) == model.calls_per_sample and max(read) == rows
    settings = model.config.flow
    least = settings.edit_start if sources else settings.start
    times = flow.sampling_times(settings.sample_points, settings.sample_shift)[:-1]
    assert [count > 1 for count in read] == [guidance > 1 and t > least for t in times]


def test_a_request_from_text_is_drawn_the_same_in_a_pass_with_sources(model):
    drawn = [
        model.sample(
            model.processor.generate_prompts(["a cube"], sources),
            guidance=4.0,
            temperature=0.0,
            generator=torch.Generator().manual_seed(0),
        )
        for sources in (None, [None])
    ]
    torch.testing.assert_close(drawn[0], drawn[1], rtol=1e-4, atol=1e-5)
