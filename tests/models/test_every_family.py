"""The contract of a family, on a tiny random model of every family there is; what only one has is tested in its own files.

A new family needs fixtures NAME_path and NAME_state in conftest.py.
"""

from __future__ import annotations

import pickle
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from megaunigame.errors import ModelError
from megaunigame.models.base import UnifiedModel
from megaunigame.models.causal.codes import CodeModel
from megaunigame.models.causal.model import CausalModel
from megaunigame.models.weights.settings_files import read_tokenizer
from megaunigame.registry import available, find
from megaunigame.step.inputs import IGNORE
from megaunigame.step.labels import label_positions
from megaunigame.step.requests import GENERATE, UNDERSTAND
from megaunigame.step.rows import GenerateRow, UnderstandRow
from tests.models.conftest import EMU3_PICTURES
from tests.models.shared import ALL_TARGETS, PLAN, TURNS, built, copied, counted_calls, generate, left_padded, understand

FAMILIES = available("models", UnifiedModel)
CODE_FAMILIES = [name for name in FAMILIES if issubclass(find("models", name, UnifiedModel), CodeModel)]
LENGTH = 160


class Tiny(NamedTuple):
    """A tiny model on disk: its family, its folder, all its weights under our names."""

    family: type[CausalModel]
    path: Path
    state: dict[str, Tensor]

    def load(self, **options) -> CausalModel:
        return self.family.load(self.path, **{"max_length": LENGTH, **options})


@pytest.fixture(params=FAMILIES)
def tiny(request):
    name = request.param
    fixtures = [request.getfixturevalue(f"{name}_{what}") for what in ("path", "state")]
    return Tiny(find("models", name, CausalModel), *fixtures)


@pytest.fixture
def model(tiny):
    return tiny.load()


def generated(model, picture):
    rows = [GenerateRow("a cube", picture(0), picture(0)), GenerateRow("a ball", picture(1), picture(1))]
    with torch.no_grad():
        return model(generate(model, *rows), predict=True)


def greedy(logits):
    return logits.argmax(-1)


# Facts


def test_a_family_has_the_name_of_its_folder(tiny):
    assert find("models", tiny.family.name, UnifiedModel) is tiny.family


def test_every_parameter_is_in_exactly_one_group(tiny, model):
    family, names = tiny.family, [name for name, _ in model.named_parameters()]
    for name in names:
        owners = [g for g, prefixes in family.groups.items() if name.startswith(tuple(prefixes))]
        assert len(owners) == 1 and family.group_of(name) == owners[0], (name, owners)
    assert {family.group_of(name) for name in names} == set(family.groups)
    with pytest.raises(KeyError, match="other.weight belongs to no group"):
        family.group_of("other.weight")


def test_groups_of_passes_and_defaults_are_groups(tiny):
    family = tiny.family
    assert set(family.trained_by_default) == set(family.groups) - {"vision"}
    assert set(family.groups_of_pass(GENERATE, True)) == set(family.groups)
    for name in (UNDERSTAND, GENERATE):
        with_images, without = family.groups_of_pass(name, True), family.groups_of_pass(name, False)
        assert without == [group for group in with_images if group not in family.seeing]
        assert "lm" in without and set(with_images) <= set(family.groups)


# Folders and weights


def test_names_are_exactly_those_of_the_built_module(tiny):
    family, path = tiny.family, str(tiny.path)
    model = built(family, path, max_length=LENGTH)
    names, frozen = family.weights(path).names(), family.frozen_weights(path).names()
    assert names == {n for n, _ in model.named_parameters()} == set(model.state_dict())
    assert names | frozen == set(tiny.state)
    assert {name.startswith(family.keys.frozen) for name in frozen} == {True}
    assert not any(name.startswith(family.keys.frozen) for name in names)
    assert all(p.dim() > 0 for p in model.parameters())
    assert family.language_layers(path) == len(model.language_model.layers) == 2


def test_weights_arrive_unchanged(tiny, model):
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, tiny.state[name]), name
    frozen = model.frozen.module
    for name, tensor in frozen.state_dict().items():
        assert torch.equal(tensor, tiny.state[tiny.family.keys.frozen + name]), name
    assert not any(p.requires_grad for p in frozen.parameters()) and not frozen.training


def test_bfloat16_weights_leave_the_rotary_frequencies_in_float32(tiny):
    model = tiny.load(dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    frequencies = {name: b.dtype for name, b in model.named_buffers() if name.endswith("inv_freq")}
    assert frequencies and set(frequencies.values()) == {torch.float32}


def test_a_checkpoint_of_another_model_is_refused(tiny, tmp_path):
    family, state = tiny.family, {k: v.contiguous() for k, v in tiny.state.items()}
    copied(tiny.path, tmp_path)
    lost, keys = min(family.weights(str(tiny.path)).names()), family.keys

    def with_state(changed):
        save_file(changed, tmp_path / "model.safetensors")
        return str(tmp_path)

    with pytest.raises(ModelError, match=f"checkpoint of another model .1 missing: {lost}"):
        family.weights(with_state({k: v for k, v in state.items() if k != lost}))
    with pytest.raises(ModelError, match="1 unexpected: lm_head.extra"):
        family.weights(with_state({**state, "lm_head.extra": torch.zeros(2)}))
    vocabulary = len(state["lm_head.weight"])
    with pytest.raises(ModelError, match=rf"lm_head.weight is \(5, 64\) instead of \({vocabulary}, 64\)"):
        family.weights(with_state({**state, "lm_head.weight": torch.zeros(5, 64)}))
    with pytest.raises(ModelError, match=f"1 keys are not {keys.family}'s, such as other.weight"):
        family.weights(with_state({**state, "other.weight": torch.zeros(2)}))
    with_state({k: v for k, v in state.items() if not k.startswith(keys.frozen + "decoder")})
    with pytest.raises(ModelError, match=f"{family.frozen_name} in .* missing: decoder"):
        family.load(tmp_path)


@pytest.mark.parametrize("tiny", CODE_FAMILIES, indirect=True)
def test_a_written_folder_survives_another_round(tiny, tmp_path):
    read_config = import_module(f"megaunigame.models.{tiny.family.name}.configuration").read_config
    write_folder = import_module(f"megaunigame.models.{tiny.family.name}.folder").write_folder
    state = load_file(tiny.path / "model.safetensors")
    pictures = EMU3_PICTURES if tiny.family.name == "emu3" else {}
    write_folder(tmp_path, read_config(tiny.path), state, read_tokenizer(tiny.path), **pictures)
    again = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(again[k], v) for k, v in state.items())
    assert read_config(tmp_path).to_dict() == read_config(tiny.path).to_dict()


@pytest.mark.parametrize(("attention", "message"), [("flash", "legal are sdpa"), ("flash_attention_2", "flash_attn")])
def test_attention_that_cannot_run_is_refused(tiny, attention, message):
    with pytest.raises(ModelError, match=message):
        built(tiny.family, tiny.path, max_length=LENGTH, attention=attention)


def test_the_frozen_tokenizer_is_not_part_of_the_model(tiny):
    model = built(tiny.family, tiny.path, max_length=LENGTH)
    side = model.processor.image_size
    with pytest.raises(RuntimeError, match="load_frozen"):
        model.encode_target(torch.zeros(1, 3, side, side))
    names = set(model.state_dict())
    model.load_frozen(str(tiny.path), torch.device("cpu"), torch.bfloat16)
    assert set(model.state_dict()) == names
    model.requires_grad_(True)
    model.train()
    frozen, plain = model.frozen.module, model.build_frozen()
    assert not any(p.requires_grad for p in frozen.parameters()) and not any(m.training for m in frozen.modules())
    for ours, theirs in zip((*frozen.parameters(), *frozen.buffers()), (*plain.parameters(), *plain.buffers()), strict=True):
        assert ours.dtype == (torch.bfloat16 if theirs.is_floating_point() else theirs.dtype)
    assert len(model.encode_target(torch.zeros(1, 3, side, side))) == 1


# Rows


def test_largest_rows_fill_the_sequence(model):
    inputs = model.processor.largest(PLAN, UNDERSTAND)
    assert inputs.attention.sum(1).tolist() == [LENGTH, LENGTH]
    assert inputs.images.shape[:2] == (2, 1) and (inputs.counts > 0).all()
    inputs = model.processor.largest(PLAN, GENERATE)
    assert (inputs.attention.sum(1) + model.processor.after_prompt).tolist() == [LENGTH, LENGTH]
    assert inputs.image_valid.all() and inputs.terms.tolist() == [1, 1]


def test_a_processor_travels_to_workers_and_gives_answers_back(model, picture):
    processor, row = model.processor, UnderstandRow([picture(0)], TURNS)
    copy = pickle.loads(pickle.dumps(processor))
    assert torch.equal(understand(copy, row).tokens, understand(processor, row).tokens)
    for answer, end in ((" a red ball", processor.eos_id), ("a red ball", processor.pad_id)):
        tokens = processor.tokenizer.encode(answer, add_special_tokens=False)
        assert processor.text([*tokens, processor.eos_id, end]) == "a red ball"


# Passes


def test_collated_rows_say_where_their_labels_and_their_padding_are(model, picture):
    asked = understand(model, UnderstandRow([picture(0)], TURNS[:1]), None, UnderstandRow([], TURNS))
    assert torch.equal(asked.label_positions, label_positions(asked.labels)) and not asked.front_padding
    assert (
        asked.counts.tolist() == (asked.labels != IGNORE).sum(1).tolist() and (asked.label_positions > 0).any(1)[[0, 2]].all()
    )
    for words in (2, 3, 4, 5, 6, 7, 8, 9):
        row = GenerateRow(" ".join(["cube"] * words), picture(0))
        drawn, with_a_dummy = generate(model, row), generate(model, row, None)
        assert drawn.front_padding is not bool(drawn.attention.all()) and with_a_dummy.front_padding


def test_only_codes_are_predicted(model, picture):
    inputs = generate(model, GenerateRow("a cube", picture(0)))
    if isinstance(model, CodeModel):
        assert model.predict(inputs).shape == (1, model.codes_per_image)
    else:
        with pytest.raises(ModelError, match="predicts no codes in its generate pass"):
            model.predict(inputs)
    with pytest.raises(TypeError, match="has no pass for str"):
        model("generate", inputs)


def test_loss_is_the_sum_over_the_labeled_positions(model, picture):
    inputs = understand(model, UnderstandRow([picture(0)], TURNS[:2]), UnderstandRow([], TURNS[1:2]))
    with torch.no_grad():
        losses = model(inputs).loss_sum
        logits = model.lm_head(model._read(model.embed(inputs), inputs.attention))
    log_probabilities = logits.log_softmax(-1)
    for row in range(2):
        expected = sum(
            -log_probabilities[row, t - 1, label].item()
            for t, label in enumerate(inputs.labels[row].tolist())
            if label != IGNORE
        )
        assert losses[row].item() == pytest.approx(expected, rel=1e-5)


def test_token_0_is_a_label_like_any_other(model):
    inputs = understand(model, UnderstandRow([], TURNS[:1]), UnderstandRow([], TURNS[:2]), None)
    inputs.labels[1][inputs.labels[1] != IGNORE] = torch.arange(int(inputs.counts[1]))
    inputs.label_positions = label_positions(inputs.labels)
    with torch.no_grad():
        output = model(inputs)
        logits = model.lm_head(model._read(model.embed(inputs), inputs.attention))[:, :-1]
        everywhere = model(inputs, predict=True)
    losses = F.cross_entropy(logits.transpose(1, 2), inputs.labels[:, 1:], ignore_index=IGNORE, reduction="none").sum(1)
    torch.testing.assert_close(output.loss_sum, losses, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(everywhere.loss_sum, losses, rtol=1e-5, atol=1e-5)
    assert losses[0] != losses[1] and output.loss_sum[2] == 0
    real = inputs.attention[:, 1:]
    assert torch.equal(everywhere.predictions[:, 1:][real], logits.argmax(-1)[real])


def test_predictions_of_the_understand_pass_are_for_their_own_position(model, picture):
    inputs = understand(model, UnderstandRow([picture(0)], TURNS))
    with torch.no_grad():
        output = model(inputs, predict=True)
        logits = model.lm_head(model._read(model.embed(inputs), inputs.attention, front_padding=inputs.front_padding))
        plain = model(inputs)
    assert torch.equal(output.predictions[:, 1:], logits[:, :-1].argmax(-1))
    torch.testing.assert_close(output.loss_sum, plain.loss_sum)


def test_images_are_seen(model, picture):
    losses = [model(understand(model, UnderstandRow([picture(seed)], TURNS[:1]))).loss_sum.item() for seed in (0, 1)]
    assert abs(losses[0] - losses[1]) > 1e-3


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_independent_turns_equal_turns_asked_alone(tiny, picture, attention):
    model = tiny.load(attention=attention)
    with torch.no_grad():
        together = model(understand(model, UnderstandRow([picture(0)], TURNS, independent=True), None)).loss_sum
        alone = [model(understand(model, UnderstandRow([picture(0)], [t]))).loss_sum for t in TURNS]
        sequential = model(understand(model, UnderstandRow([picture(0)], TURNS))).loss_sum
    assert together[0].item() == pytest.approx(torch.cat(alone).sum().item(), abs=1e-4, rel=1e-5)
    assert abs(together[0].item() - sequential[0].item()) > 1e-3


def test_padding_side_does_not_matter(model, picture):
    rows = (UnderstandRow([picture(0)], TURNS[:1]), UnderstandRow([picture(1)], TURNS))
    with torch.no_grad():
        right = model(understand(model, *rows)).loss_sum
        left = model(left_padded(understand(model, *rows), extra=5)).loss_sum
    torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-4)


def test_a_longer_neighbor_does_not_change_a_generate_row(model, picture):
    short, long = GenerateRow("a cube", picture(0)), GenerateRow("a small green cone behind", picture(1), picture(2))
    with torch.no_grad():
        alone, together = (model(generate(model, *rows)) for rows in ((short,), (short, long)))
    torch.testing.assert_close(together.hidden[:1], alone.hidden, rtol=1e-4, atol=1e-5)
    if isinstance(model, CodeModel):  # noise is drawn by the place in the batch
        torch.testing.assert_close(together.loss_sum[:1], alone.loss_sum, rtol=1e-5, atol=1e-4)


def test_dropped_conditions_are_all_the_same(model, picture):
    rows = [GenerateRow(text, picture(0), source=picture(seed), unconditional=True) for text, seed in (("X", 1), ("Y", 2))]
    with torch.no_grad():
        outputs = [model(generate(model, row)) for row in rows]
    assert torch.equal(*(output.loss_sum for output in outputs)) and torch.equal(*(output.hidden for output in outputs))


def test_dummy_rows_have_no_loss_and_no_gradient(model, picture):
    def gradients(*rows):
        model.zero_grad()
        inputs_u = understand(model, *[UnderstandRow([picture(0)], TURNS[:1]) if r else None for r in rows])
        inputs_g = generate(model, *[GenerateRow("a cube", picture(1)) if r else None for r in rows])
        losses = torch.stack([model(inputs_u).loss_sum, model(inputs_g).loss_sum])
        losses.sum().backward()
        return losses.detach(), {n: p.grad.clone() for n, p in model.named_parameters()}

    losses, with_dummy = gradients(True, False)
    assert (losses[:, 1] == 0).all() and (losses[:, 0] > 0).all()
    if isinstance(model, CodeModel):  # noise is drawn by the place in the batch
        _, without = gradients(True)
        for name, grad in with_dummy.items():
            largest = without[name].abs().max().item()
            torch.testing.assert_close(grad, without[name], rtol=1e-4, atol=1e-5 + 1e-5 * largest, msg=name)
    losses, nothing = gradients(False, False)
    assert (losses == 0).all()
    assert all((g == 0).all() for g in nothing.values())


@pytest.mark.parametrize("frozen", [torch.float32, torch.bfloat16], ids=["as the engine does", "all in bfloat16"])
def test_bfloat16_is_finite_and_near_float32(tiny, picture, frozen):
    losses = []
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny.load(dtype=dtype)
        model.load_frozen(str(tiny.path), torch.device("cpu"), frozen if dtype == torch.bfloat16 else torch.float32)
        drawn = model(generate(model, GenerateRow("a cube", picture(0), picture(1)), None))
        inputs = understand(model, UnderstandRow([picture(0)], TURNS, independent=True), None)
        asked = model(inputs)
        pixels = [model.decode(drawn.hidden, anchor=anchor).pixels for anchor in (None, drawn.target)]
        inputs.images = model.as_source(pixels[0]).unsqueeze(1)
        total = asked.loss_sum.sum() + drawn.loss_sum.sum() + sum(p.mean() for p in pixels)
        (total + model(inputs).loss_sum.sum()).backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
        assert all(torch.isfinite(p).all() for p in pixels)
        losses.append(torch.stack([asked.loss_sum, drawn.loss_sum]).detach())
    torch.testing.assert_close(losses[1], losses[0], rtol=0.05, atol=0.0)


@pytest.mark.parametrize("pass_name", [UNDERSTAND, GENERATE])
def test_checkpointing_changes_no_gradient(tiny, picture, pass_name):
    grads = []
    for checkpointing in (False, True):
        model = tiny.load(gradient_checkpointing=checkpointing).train()
        torch.manual_seed(0)
        rows = {
            UNDERSTAND: understand(model, UnderstandRow([picture(0)], TURNS)),
            GENERATE: generate(model, GenerateRow("a cube", picture(0), picture(1))),
        }
        model(rows[pass_name]).loss_sum.sum().backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
        assert all(layer.gradient_checkpointing == checkpointing for layer in model.language_model.layers)
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, rtol=1e-5, atol=1e-6, msg=name)


# Pictures and answers


@pytest.mark.parametrize("anchored", [False, True])
def test_pixels_reach_the_understand_pass_with_a_gradient(model, picture, anchored):
    """The way of an adversary: delta -> pixels -> source -> understanding loss, through frozen weights."""
    model.requires_grad_(False)
    output = generated(model, picture)
    delta = torch.zeros_like(output.hidden[:1], requires_grad=True)
    inputs = understand(model, UnderstandRow([picture(0)], [("what ?", "ball")]))
    pixels = model.decode(output.hidden[:1], delta, output.target[:1] if anchored else None).pixels
    shown = model.as_source(pixels)
    assert shown.shape == inputs.images[:, 0].shape
    inputs.images = shown.unsqueeze(1)
    (gradient,) = torch.autograd.grad(model(inputs).loss_sum.sum(), [delta])
    assert torch.isfinite(gradient).all() and gradient.abs().max() > 0


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_sampling_makes_a_fixed_number_of_calls_and_repeats_with_the_generator(model, picture, guidance):
    inputs = model.processor.generate_prompts(["a small green cone behind", "a cube"], [None, picture(0)])
    calls, tower = counted_calls(model.language_model), model.vision_tower
    model.train()
    if tower is not None:
        tower.eval()
    pictures = [
        model.sample(inputs, guidance=guidance, temperature=1.0, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    ]
    assert len(calls) == 3 * model.calls_per_sample
    assert torch.equal(pictures[0], pictures[1]) and not torch.equal(pictures[0], pictures[2])
    side = model.processor.image_size
    assert pictures[0].shape == (2, 3, side, side) and pictures[0].abs().max() <= 1
    assert model.training and model.language_model.training and (tower is None or not tower.training)


def test_answers_equal_decoding_without_a_cache(model, picture):
    inputs = model.processor.prompt_inputs([[picture(0)], []], ["what color is the cube ?", "how many ?"])
    calls = counted_calls(model.language_model)
    answers = model.answer(inputs, max_new_tokens=6)
    assert answers.shape == (2, 6) and len(calls) == 6
    with torch.no_grad():
        embeds, attention, tokens = model.embed(inputs), inputs.attention, []
        for _ in range(6):
            tokens.append(model.lm_head(model._read(embeds, attention)[:, -1]).argmax(-1))
            embeds = torch.cat([embeds, model.language_model.embed_tokens(tokens[-1])[:, None]], dim=1)
            attention = torch.cat([attention, torch.ones(2, 1, dtype=torch.bool)], dim=1)
    end = model.processor.eos_id
    for answer, expected in zip(answers.tolist(), torch.stack(tokens, dim=1).tolist(), strict=True):
        length = answer.index(end) + 1 if end in answer else len(answer)
        assert answer[:length] == expected[:length] and set(answer[length:]) <= {end}


def test_an_ended_answer_repeats_the_end_token(model):
    inputs = model.processor.prompt_inputs([[]], ["how many ?"])
    first = model.answer(inputs, max_new_tokens=1)[0, 0].item()
    model.processor.format.eos = first  # whatever comes first now ends the answer
    assert model.answer(inputs, max_new_tokens=4).tolist() == [[first] * 4]


@pytest.mark.parametrize("tiny", CODE_FAMILIES, indirect=True)
def test_decode_shows_the_likeliest_codes_and_is_differentiable(model, picture):
    output = generated(model, picture)
    hidden = output.hidden.clone().requires_grad_()
    delta = torch.zeros_like(hidden, requires_grad=True)
    decoded = model.decode(hidden, delta)
    torch.testing.assert_close(decoded.pixels, model.decode_target(output.predictions), rtol=0, atol=1e-5)
    side = model.processor.image_size
    assert decoded.pixels.shape == (2, 3, side, side) and decoded.pixels.abs().max() <= 1 and (decoded.changed == 0).all()
    decoded.pixels.square().mean().backward()
    assert hidden.grad.abs().max() > 0 and torch.equal(hidden.grad, delta.grad)
    assert all(p.grad is None for p in model.frozen.module.parameters())


@pytest.mark.parametrize("tiny", CODE_FAMILIES, indirect=True)
def test_teacher_forcing_on_sampled_codes_predicts_them_again(model):
    inputs = model.processor.generate_prompts(["a cube"])
    codes = model.sample_codes(inputs, guidance=1.0, pick=greedy)
    with torch.no_grad():
        assert torch.equal(model.predict_codes(inputs, codes, predict=True).predictions, codes)


# Training


def test_lora_trains_adapters_of_the_language_model_only(model, picture):
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    inputs = understand(model, UnderstandRow([picture(0)], [("what ?", "ball")]))
    with torch.no_grad():
        base = model(inputs).loss_sum
    model.add_lora(rank=4, alpha=8, dropout=0.0, targets=ALL_TARGETS, seed=0)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    layers = next(name for name, module in model.named_modules() if module is model.language_model) + ".layers."
    assert len(trained) == 2 * len(ALL_TARGETS) * 2
    assert all("lora_" in n and n.startswith(layers) for n in trained)
    assert {model.group_of(n) for n in trained} == {"lm"}
    loss = model(inputs).loss_sum
    torch.testing.assert_close(loss.detach(), base)  # the second matrix starts at zero
    (loss.sum() + model(generate(model, GenerateRow("a cube", picture(0)))).loss_sum.sum()).backward()
    assert all((p.grad is not None) == (n in trained) for n, p in model.named_parameters())
    assert any(p.grad.abs().max() > 0 for n, p in model.named_parameters() if n in trained)
    for name, parameter in model.named_parameters():
        assert name in trained or torch.equal(parameter, before[name.replace(".base_layer", "")])


def test_adapters_start_equal_everywhere_and_leave_the_random_state_alone(tiny):
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = tiny.load()
        expected = torch.get_rng_state()
        model.add_lora(rank=2, alpha=4, dropout=0.0, targets=["q_proj"], seed=0)
        assert torch.equal(torch.get_rng_state(), expected)
        states.append({n: p for n, p in model.named_parameters() if p.requires_grad})
    assert all(torch.equal(p, states[1][n]) for n, p in states[0].items())


def test_unknown_lora_targets_are_refused(model):
    with pytest.raises(ModelError, match="Unknown LoRA target 'query'.*down_proj, gate_proj"):
        model.add_lora(rank=2, alpha=4, dropout=0.0, targets=["q_proj", "query"], seed=0)
    with pytest.raises(ModelError, match="No LoRA targets"):
        model.add_lora(rank=2, alpha=4, dropout=0.0, targets=[], seed=0)


def test_a_frozen_tower_and_the_frozen_tokenizer_stay_in_eval_mode(model):
    tower, frozen = model.vision_tower, model.frozen.module
    if tower is not None:
        tower.requires_grad_(False)
    model.train()
    assert model.language_model.training and not any(m.training for m in frozen.modules())
    if tower is not None:
        assert not any(m.training for m in tower.modules())
        tower.requires_grad_(True)
        model.train()
        assert tower.training
    assert not model.eval().language_model.training
