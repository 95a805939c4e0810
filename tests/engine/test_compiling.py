"""Compiled layers compute what layers compute, are compiled once for any lengths, and are refused where they cannot be."""

from __future__ import annotations

import dataclasses
import logging
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from megaunigame.config import EngineConfig
from megaunigame.engine import compiling, zero3
from megaunigame.engine.compiling import CompiledLayers, check_compile, keep_attention_apart
from megaunigame.engine.model_flops import CountFlops
from megaunigame.errors import ConfigError, ModelError
from megaunigame.step.requests import UNDERSTAND, RowRequest, plan_from
from megaunigame.step.rows import UnderstandRow
from tests.engine.learners import learner_of
from tests.models.shared import TURNS, generate, understand, write_clear
from tests.models.test_every_family_packs import generate_rows, measured, understand_rows
from tests.multi_process.tiny_run import write_model

EAGER = "aot_eager"
"""Everything of torch.compile but the code that it makes of a graph."""
CPU = torch.device("cpu")


@pytest.fixture
def picture():
    return lambda seed: torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def forgotten():
    """torch counts the graphs of a function, not those of a model."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def two(name, path, *, lora, packed, **options):
    """The same model twice, with taps, in training."""
    tiny = write_clear(name, path)
    models = tiny.load(**options), tiny.load(**options)
    for model in models:
        if lora:
            model.add_lora(rank=4, alpha=8, dropout=0.0, targets=[], seed=1)
            for parameter in (p for n, p in model.named_parameters() if "lora_B" in n):
                torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(2))
        if packed:
            model.pack_rows(400)
        keep_attention_apart(model)
        model.train()
    return models


def check_same(plain, model, inputs):
    expected, gradients = measured(plain, inputs)
    found, ours = measured(model, inputs)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-5 * max(1.0, value.abs().max().item()), msg=key)
    assert gradients and ours.keys() >= gradients.keys()
    # What a layer computes and nobody reads has no gradient; compiled, it has one of zeros.
    assert not any(ours[key].any() for key in ours.keys() - gradients.keys())
    whole = torch.cat([gradient.flatten() for gradient in gradients.values()]).norm()
    assert torch.stack([(ours[key] - gradient).norm() for key, gradient in gradients.items()]).norm() <= 1e-5 * whole


@pytest.mark.parametrize(
    ("lora", "packed", "checkpointing"),
    [
        (False, False, True),
        (True, True, True),
    ],
)
def test_losses_attention_and_gradients_are_those_of_layers(lora, packed, checkpointing, tmp_path, picture):
    """And lengths that are new need at most one graph that was not made for those of two steps: torch compiles numbers that
    happen to be equal, such as those of rows and of heads, as one."""
    plain, model = two("janus", tmp_path, lora=lora, packed=packed, gradient_checkpointing=checkpointing)
    compiled = CompiledLayers(model, EAGER)
    rows, prompts = understand_rows(picture), generate_rows(picture)
    for extra in ("", " a small green cone", " a small green cone behind two blue balls"):
        made = compiled.graphs  # in the third round: of the first two
        longer = [row and dataclasses.replace(row, turns=[(f"what ?{extra}", f"a ball{extra}"), *row.turns]) for row in rows]
        check_same(plain, model, understand(model, *longer))
        longer = [row and dataclasses.replace(row, prompt=row.prompt + extra) for row in prompts]
        check_same(plain, model, generate(model, *longer))
    assert made > 2
    assert compiled.graphs <= made + 1 and not compiled.has_hit_limit


def test_answers_and_counted_steps_are_not_compiled(tmp_path, picture):
    plain, model = two("janus", tmp_path, lora=False, packed=False)
    compiled = CompiledLayers(model, EAGER)
    asked = model.processor.prompt_inputs([[picture(0)]], ["what ?"])
    answers = [each.answer(asked, max_new_tokens=3) for each in (plain, model)]
    assert torch.equal(*answers) and compiled.graphs == 0
    counts = []
    for each in (plain, model):
        with CountFlops() as counter:
            each(understand(each, UnderstandRow([picture(0)], TURNS))).loss_sum.sum().backward()
        counts.append(counter.flops)
    assert counts[0] == counts[1] > 0 and compiled.graphs == 0


def test_the_limit_is_said_once(monkeypatch, tmp_path, picture, caplog):
    """With room for one graph of each part, gradients that are needed and those that are not are one too many."""
    monkeypatch.setattr(compiling, "VARIANTS", 1)
    plain, model = two("janus", tmp_path, lora=False, packed=False)
    compiled = CompiledLayers(model, EAGER)
    inputs = understand(model, *understand_rows(picture))
    with torch.no_grad():
        torch.testing.assert_close(model(inputs).loss_sum, plain(inputs).loss_sum)
    assert not compiled.has_hit_limit
    with caplog.at_level(logging.WARNING):
        check_same(plain, model, inputs)
        check_same(plain, model, inputs)
    assert compiled.has_hit_limit
    assert caplog.text.count("engine.compile=layers: torch has compiled a part of a layer 1 times") == 1


PLAN = plan_from([RowRequest("u", UNDERSTAND, "train", 3)])


def test_updates_under_zero_2_are_those_of_layers(world, tmp_path, monkeypatch):
    write_model(tmp_path / "model")
    monkeypatch.setattr(zero3, "CompiledLayers", partial(CompiledLayers, backend=EAGER))
    losses = {}
    for compile in ("none", "layers"):
        learner, _ = learner_of(tmp_path, world, PLAN, 2, "fp32", engine={"compile": compile}, gradient_checkpointing=True)
        assert (learner.compiled is not None) == (compile == "layers")
        largest = learner.module.processor.largest(PLAN, UNDERSTAND)
        losses[compile] = []
        for _ in range(3):
            loss = learner.forward(dataclasses.replace(largest)).loss_sum.sum()
            learner.backward(loss)
            assert learner.update()
            losses[compile].append((loss.item(), learner.grad_norm()))
    assert learner.compiled.graphs > 2
    torch.testing.assert_close(torch.tensor(losses["layers"]), torch.tensor(losses["none"]), rtol=1e-5, atol=0)
    assert losses["none"][0] != losses["none"][2]


def test_a_model_that_does_not_tell_its_layers_is_refused():
    with pytest.raises(ModelError, match="SimpleNamespace does not tell its layers. Type engine.compile=none"):
        keep_attention_apart(SimpleNamespace(layers=lambda: ()))


@pytest.mark.parametrize(
    ("settings", "stage", "reason"),
    [
        (
            {},
            3,
            "ZeRO-3 gathers the weights of each module in hooks.*Type engine.ds_config=ds_configs/zero2.json, or engine",
        ),
        ({"kernels": "liger"}, 2, "around the kernels of liger. Type engine.kernels=none, or engine.compile=none"),
        ({"sequence_ranks": 2}, 2, "ranks that share rows. Type engine.sequence_ranks=1, or engine.compile=none"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, stage, reason):
    with pytest.raises(ConfigError, match=f"engine.compile=layers cannot run here: .*{reason}"):
        check_compile(EngineConfig(compile="layers", **settings), stage, CPU)
    check_compile(EngineConfig(**settings), stage, CPU)


def test_a_machine_that_cannot_compile_is_refused(monkeypatch, tmp_path):
    wanted = EngineConfig(compile="layers")
    monkeypatch.setattr(compiling, "_cpp_compiler", lambda: "no C++ compiler is found.")
    with pytest.raises(ConfigError, match="no C.. compiler is found. Install it, or engine.compile=none"):
        check_compile(wanted, 2, CPU)
    monkeypatch.setattr(compiling, "_cpp_compiler", lambda: "")
    monkeypatch.setattr(compiling.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(ConfigError, match=r"there is no .*Python.h. Install the headers of this Python \(python3-dev\)"):
        check_compile(wanted, 2, CPU)
    (tmp_path / "Python.h").write_text("")
    check_compile(wanted, 2, CPU)
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(compiling, "capability", lambda device: (6, 1))
    with pytest.raises(ConfigError, match="capability 8.0 or newer, and this one has 6.1. Take another GPU, or engine.compile"):
        check_compile(wanted, 2, gpu)
    monkeypatch.setattr(compiling, "capability", lambda device: (8, 0))
    monkeypatch.setattr(compiling.shutil, "which", lambda name: None)
    monkeypatch.setenv("CC", "my-cc")
    with pytest.raises(ConfigError, match=r"no C compiler is found \(CC=my-cc\). Install it"):
        check_compile(wanted, 2, gpu)


def test_no_compiler_is_named_when_torch_finds_none(monkeypatch):
    from torch._inductor import cpp_builder, exc

    def none():
        raise exc.InvalidCxxCompiler()

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    assert "g++" in compiling._cpp_compiler()
