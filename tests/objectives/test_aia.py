"""AIA: what it measures, which rows count, how weights are found, and what is refused. Gradients: tests/multi_process."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from megaunigame.attention.positions import measurable
from megaunigame.attention.targets import Target, table, write_targets
from megaunigame.errors import CheckpointError, ConfigError
from megaunigame.models.janus import Janus
from megaunigame.monitoring import names
from megaunigame.objectives.aia import AIA
from megaunigame.objectives.aia.measurement import measurement_of
from megaunigame.objectives.aia.player import WEIGHT, AttentionPlayer, attention_loss
from megaunigame.objectives.aia.settings import Settings
from megaunigame.objectives.player import Context
from megaunigame.settings import fill
from megaunigame.step.inputs import AttentionShares, GenerateInputs, InputsT, Taps, UnderstandInputs, UnderstandOutput
from megaunigame.step.micro import Step
from megaunigame.step.requests import GENERATE, UNDERSTAND, RowRequest, plan_from
from megaunigame.step.rows import GenerateRow, UnderstandRow
from tests.models.conftest import picture, tiny_of  # noqa: F401
from tests.models.shared import TURNS, generate, understand
from tests.passes import pass_inputs
from tests.worlds import OneRank

PLAN = plan_from([
    RowRequest("understanding", UNDERSTAND, "s", 2),
    RowRequest("caption", GENERATE, "s", 1, weight=2.0),
    RowRequest("pixel", GENERATE, "s", 1, takes_source=True),
])  # fmt: skip
LAYERS = 6


class Family:
    """Stands for a family of six layers."""

    @classmethod
    def language_layers(cls, path):
        return LAYERS


def aia(**settings) -> AttentionPlayer:
    objective = AIA(fill(Settings, {"targets": "relative", **settings}, "objectives.aia"))
    objective.check_plan(PLAN)
    objective.check_family(Family, "family", "path", PLAN)
    return objective.player(Context(SimpleNamespace(install_taps=lambda: LAYERS, name="family"), None, PLAN, OneRank(), 0))


def inputs(kind: type[InputsT], terms, counts, intact=None) -> InputsT:
    """Rows of five tokens; two of those that are understood are an image's."""
    tokens = torch.ones(len(terms), 5, dtype=torch.long)
    images = (torch.arange(5) // 2 == 1).expand_as(tokens) & (kind is UnderstandInputs)
    counts = torch.tensor(counts, dtype=torch.float32)
    fields = {"terms": torch.tensor(terms), "counts": counts, "image_positions": images, "intact": intact}
    return pass_inputs(kind, tokens, **fields)


def output(shares: torch.Tensor) -> UnderstandOutput:
    return UnderstandOutput(torch.zeros(shares.shape[1]), attention=AttentionShares(shares, torch.full_like(shares, 0.25)))


def step(number: int = 0, **losses: float) -> Step:
    return Step(number, 1.0, [], 1.0, losses=losses)


def named(objective: AttentionPlayer) -> list[tuple[str, str]]:
    return [(term.term, term.pass_name) for term in objective.terms]


def test_the_attention_loss_is_the_huber_loss_of_every_layer():
    shares = torch.rand(LAYERS, 7, generator=torch.Generator().manual_seed(0)).requires_grad_()
    targets = table("relative", LAYERS)[GENERATE]
    expected = sum(
        torch.nn.functional.huber_loss(shares[x], torch.full((7,), goal.target), delta=goal.delta, reduction="none") / LAYERS
        for x, goal in enumerate(targets)
    )
    ours = attention_loss(shares, targets)
    torch.testing.assert_close(ours, expected)
    assert ours.shape == (7,) and attention_loss(torch.tensor([[0.4]]), [Target(0.2, 0.4)]).item() == 0


def test_it_has_a_term_for_each_pass_and_no_row():
    objective = aia()
    assert AIA(Settings()).rows() == []
    assert named(objective) == [("aia_generate", GENERATE), ("aia_understand", UNDERSTAND)]
    assert objective.taps(UNDERSTAND) == Taps(tuple(range(LAYERS))) == objective.taps(GENERATE)
    only = aia(terms=["caption"], layers=[4, 1], queries=8, exclude_bos=True, compat=True)
    assert named(only) == [("aia_generate", GENERATE)] and only.taps(UNDERSTAND) is None
    assert only.taps(GENERATE) == Taps((1, 4), queries=8, exclude_bos=True, compat=True)


def test_the_loss_is_a_sum_over_counted_rows():
    objective = aia(weights={"generate": 3.0})
    generate, understand = objective.terms
    shares = torch.full((LAYERS, 3), 0.3)
    rows = inputs(UnderstandInputs, [0, 0, 0], [2, 0, 1], intact=torch.tensor([True, True, False]))
    assert understand.counted(rows).tolist() == [True, False, False]
    losses = understand.losses(rows, output(shares))
    assert losses[1:].tolist() == [0, 0]
    assert losses[0] == pytest.approx(attention_loss(shares, understand.layer_targets)[0].item()) and losses[0] > 0
    metrics = objective.after_learner(step(aia_understand=1.0))
    assert metrics[names.attention(UNDERSTAND, names.ATTENTION_COUNTED)] == 1
    assert metrics[names.attention(UNDERSTAND, names.ATTENTION_LAYER, 3)] == pytest.approx(0.3)
    assert metrics[names.attention(UNDERSTAND, names.ATTENTION_TARGET, 3)] == 0.15
    assert metrics[names.attention(UNDERSTAND, names.ATTENTION_FIRST)] == 0.25
    assert metrics[names.attention(UNDERSTAND, names.ATTENTION_DISTANCE)] == pytest.approx((0.2 + 0.2 + 0.15 + 0.15) / 6)
    assert metrics[names.attention(GENERATE, WEIGHT)] == 3.0
    # Nothing was measured in the other pass: no share, and no division by zero.
    assert metrics[names.attention(GENERATE, names.ATTENTION_COUNTED)] == 0
    assert names.attention(GENERATE, names.ATTENTION_DISTANCE) not in metrics
    again = objective.after_learner(step())
    assert again[names.attention(UNDERSTAND, names.ATTENTION_COUNTED)] == 0, "measurements are of one step"


def test_rows_of_other_terms_do_not_count():
    objective = aia(terms=["pixel"])
    (generate,) = objective.terms
    assert generate.counted(inputs(GenerateInputs, [1, 2], [4, 4])).tolist() == [False, True]


def test_weights_of_the_presets():
    for settings, expected in (({}, (5, 10)), ({"preset": "paper"}, (40, 40)), ({"weights": {"understand": 0.5}}, (5, 0.5))):
        objective = aia(**settings)
        assert tuple(term.weight(step()) for term in objective.terms) == expected
    warming = aia(warmup_steps=4)
    assert [warming.terms[0].weight(step(n)) for n in (0, 1, 3, 9)] == [1.25, 2.5, 5, 5]


def test_measured_weights_are_found_once_and_kept(tmp_path):
    objective = aia(preset="auto", ratio=50, calibration_steps=2, weights={"understand": 7.0})
    generate, understand = objective.terms
    assert generate.weight(step()) == 0 and understand.weight(step()) == 7
    objective.after_learner(step(0, caption=2.0, pixel=1.0, aia_generate=0.02))
    objective.after_learner(step(1))  # a step without counted rows measures nothing
    assert generate.weight(step(2)) == 0
    for file in objective.pending():
        file.write(tmp_path)
    resumed = aia(preset="auto", ratio=50, calibration_steps=2, weights={"understand": 7.0})
    resumed.load(tmp_path)
    for one in (objective, resumed):
        generate, understand = one.terms
        one.after_learner(step(2, caption=4.0, aia_generate=0.03))  # pixel rows rested
        # 2 x 2 + 2 x 4 = 12 nats of loss against 50 times .05: pixel rows, with a source, are not measured
        assert generate.weight(step(3)) == pytest.approx(12 / (50 * 0.05))
        one.after_learner(step(3, caption=99.0, aia_generate=99.0))
        assert generate.weight(step(4)) == pytest.approx(12 / (50 * 0.05)) and understand.weight(step(4)) == 7
    saved = json.loads((tmp_path / "aia.json").read_text())
    assert saved == {"weights": {}, "seen": {"generate": [4.0, 0.02, 1]}}, "weights of the recipe are not measured"


def test_measured_weights_see_the_factors_of_the_step():
    """A term that counts half counts half in the loss that the attention loss is measured against."""
    objective = aia(preset="auto", ratio=50, calibration_steps=1)
    now = step(0, caption=2.0, pixel=1.0, aia_generate=0.02)
    now.factors["caption"] = 0.5
    objective.after_learner(now)
    assert objective.terms[0].weight(step(1)) == pytest.approx(2 * 0.5 * 2 / (50 * 0.02))


def test_a_weight_of_the_recipe_goes_before_a_measured_one(tmp_path):
    """Also one that the recipe has only now, for a pass that was measured before."""
    first = aia(preset="auto", calibration_steps=1)
    first.after_learner(step(0, understanding=2.0, aia_understand=0.02))
    for file in first.pending():
        file.write(tmp_path)
    again, given = aia(preset="auto", calibration_steps=1), aia(preset="auto", calibration_steps=1, weights={"understand": 7.0})
    for one in (again, given):
        one.load(tmp_path)
    assert again.terms[1].weight(step()) == first.terms[1].weight(step()) == pytest.approx(2 / (50 * 0.02))
    assert given.terms[1].weight(step()) == 7


def test_a_refused_step_is_not_measured():
    objective = aia(preset="auto", calibration_steps=1)
    refused = step(0, caption=float("inf"), aia_generate=0.02)
    refused.updated = False
    objective.after_learner(refused)
    assert objective.terms[0].weight(step(1)) == 0
    objective.after_learner(step(1, caption=2.0, aia_generate=0.02))
    assert objective.terms[0].weight(step(2)) == pytest.approx(2 * 2 / (50 * 0.02))


def test_rows_that_a_player_fills_are_left_out_unless_named():
    """A gradient through their pictures would be one into the player."""
    plan = plan_from([
        RowRequest("hard", UNDERSTAND, None, 2, takes_source=True),
        RowRequest("clean", UNDERSTAND, "s", 2, takes_source=True),
        RowRequest("redraw", GENERATE, "s", 2, aside=True),
    ])  # fmt: skip
    assert measurement_of(Settings(targets="relative"), plan, "family", LAYERS).row_terms == (1,)
    assert measurement_of(Settings(targets="relative", terms=["hard"]), plan, "family", LAYERS).row_terms == (0,)


def test_measured_weights_are_missed_on_resume(tmp_path):
    aia().load(tmp_path)  # the recipe says both weights
    with pytest.raises(CheckpointError, match=r"no measured weights of AIA.*objectives.aia.preset=code"):
        aia(preset="auto").load(tmp_path)


def test_rows_that_draw_from_a_picture_are_left_out_unless_named(caplog):
    """Their source is not among the keys: the loss would pull attention away from it."""
    assert aia().measurement.row_terms == (0, 1) and aia(terms=["pixel"]).measurement.row_terms == (2,)
    assert caplog.text.count("objectives.aia leaves out the rows of pixel: they draw from a source picture") == 1, "once, said"
    (generate,) = (term for term in aia().terms if term.pass_name == GENERATE)
    assert generate.counted(inputs(GenerateInputs, [1, 2], [4, 4])).tolist() == [True, False]
    only = plan_from([RowRequest("pixel", GENERATE, "s", 1, takes_source=True)])
    with pytest.raises(
        ConfigError, match=r"no such pass has rows for it.*objectives\.aia\.terms, which are left out by default"
    ):
        measurement_of(Settings(targets="relative"), only, "family", LAYERS)


def test_a_targets_file_may_speak_of_one_pass(tmp_path):
    write_targets(tmp_path / "t.yaml", {GENERATE: [Target(0.1, 0.3)] * LAYERS})
    objective = aia(targets=str(tmp_path / "t.yaml"), layers=[2])
    assert [term.pass_name for term in objective.terms] == [GENERATE]
    assert objective.measurement.layer_targets == {GENERATE: [Target(0.1, 0.3)]} and objective.taps(UNDERSTAND) is None
    write_targets(tmp_path / "other.yaml", {UNDERSTAND: [Target(0.1, 0.3)] * LAYERS})
    with pytest.raises(ConfigError, match="targets for understand, and no such pass has rows for it"):
        aia(targets=str(tmp_path / "other.yaml"), terms=["caption"])


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"preset": "cod"}, "Did you mean 'code'"),
        ({"weights": {"gen": 1.0}}, "Unknown pass in objectives.aia.weights 'gen'"),
        ({"weights": {"generate": -1.0}}, "objectives.aia.weights.generate must be at least 0; got -1"),
        ({"calibration_steps": 0}, "calibration_steps must be at least 1"),
        ({"ratio": 0.0}, "objectives.aia.ratio must be greater than 0; got 0"),
        ({"layers": [1, 1]}, "names a layer twice"),
        ({"layers": [6]}, "6 is not a layer; this model has 0 to 5"),
        ({"layers": [-1]}, "-1 is not a layer"),
        ({"terms": ["captions"]}, "Did you mean 'caption'"),
        ({"targets": "janus_pro"}, "made for 30 layers, and this model has 6"),
        ({"targets": "janus"}, "Did you mean 'janus_pro'"),
        ({"targets": "nowhere.yaml"}, "No targets file nowhere.yaml"),
    ],
)
def test_wrong_settings_are_refused(settings, complaint):
    with pytest.raises(ConfigError, match=complaint):
        aia(**settings)


def test_a_family_that_cannot_measure_is_refused():
    objective = AIA(Settings(targets="relative"))
    objective.check_plan(PLAN)
    with pytest.raises(ConfigError, match="'blind' does not measure its attention"):
        objective.check_family(SimpleNamespace(language_layers=lambda path: 0), "blind", "path", PLAN)


def test_the_depth_is_read_from_the_configuration_alone(tiny_of):  # noqa: F811
    folder = str(tiny_of("janus").path)
    objective = AIA(Settings(targets="relative"))
    objective.check_plan(PLAN)
    objective.check_family(Janus, "janus", folder, PLAN)
    with pytest.raises(ConfigError, match="2 is not a layer; this model has 0 to 1"):
        AIA(Settings(layers=[2], targets="relative")).check_family(Janus, "janus", folder, PLAN)


def test_rows_that_lack_a_side_or_their_whole_text_do_not_count(tiny_of, picture):  # noqa: F811
    taps, turn, processor = Taps((0,)), TURNS[:1], tiny_of("janus").processor(max_length=96)
    long = [("what is this ? " * 200, "a red ball")]
    dropped_turns = [*turn, ("and this ?", "a blue ball " * 200)]
    seen = understand(
        processor, UnderstandRow([picture(0)], turn), UnderstandRow([], turn), UnderstandRow([picture(0)], long), None,
        UnderstandRow([picture(0)], dropped_turns),
    )  # fmt: skip
    # whole, no image, cut, no data, its second turn left out
    assert measurable(seen, taps).tolist() == [True, False, False, False, True]
    drawn = generate(
        processor, GenerateRow("a cube", picture(1)), GenerateRow("a cube", picture(1), unconditional=True),
        GenerateRow("a cube " * 200, picture(1)), None, GenerateRow("a cube", picture(1), source=picture(2)),
    )  # fmt: skip
    assert measurable(drawn, taps).tolist() == [True, False, False, False, True]
