from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from megaunigame.errors import ConfigError, DataError, UserError
from megaunigame.evaluation.lockstep import lockstep_batches, read_share
from megaunigame.evaluation.run import as_text, evaluation_file, run_evaluation, scalars
from megaunigame.evaluation.suites.base import Suite
from megaunigame.evaluation.suites.generation import Generation
from megaunigame.evaluation.suites.questions import Questions
from megaunigame.evaluation.suites.reconstruction_questions import ReconstructionQuestions
from megaunigame.evaluation.suites.teacher_forced import TeacherForced
from megaunigame.evaluation.suites.tokenizer import Tokenizer
from megaunigame.judges.scenes import Oracle
from megaunigame.registry import find
from megaunigame.settings import fill
from tests.data.shard_files import talk
from tests.evaluation.fakes import (
    CuttingProcessor,
    FailingProcessor,
    FakeModel,
    FakeProcessor,
    bright_dark,
    evaluated,
    timeless,
    write_tars,
)
from tests.worlds import on_ranks

SAMPLES = 11


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> str:
    return write_tars(tmp_path_factory.mktemp("shards"), bright_dark(SAMPLES))


@pytest.fixture(scope="module")
def oracle(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("oracle") / "oracle.safetensors"
    Oracle().save(path)
    return str(path)


def evaluate(size: int, suites: dict[str, Suite], folder, processor=None) -> tuple[dict, list[list[tuple[str, int]]]]:
    """The result, and the model calls of every rank."""
    models = [FakeModel(processor) for _ in range(size)]
    return evaluated(models, suites, folder, step=3), [model.calls for model in models]


def alone(size: int, suite: Suite, folder) -> dict:
    """What one suite finds."""
    return evaluate(size, {"alone": suite}, folder)[0]["suites"]["alone"]


def all_suites(shards: str, oracle: str) -> dict[str, Suite]:
    return {
        "val": Questions(Questions.Config(shards=shards, batch=2, questions_per_row=1)),
        "again": ReconstructionQuestions(ReconstructionQuestions.Config(shards=shards, batch=2, questions_per_row=2)),
        "draw": Generation(Generation.Config(shards=shards, batch=2, oracle=oracle, pictures=3)),
        "tokenizer": Tokenizer(Tokenizer.Config(shards=shards, batch=2, representations=["pixel", "depth"])),
        "loss": TeacherForced(TeacherForced.Config(shards=shards, batch=2, terms=["answers", "caption", "pixel"])),
    }


@pytest.mark.parametrize("size", [2, 3])
def test_every_rank_makes_the_same_model_calls(shards, oracle, tmp_path, size):
    # 11 samples divide by neither 2 nor 3, and one rank's questions fill more batches than another's.
    _, calls = evaluate(size, all_suites(shards, oracle), tmp_path)
    assert all(of_rank == calls[0] for of_rank in calls)
    assert {name for name, _ in calls[0]} == {"understand", "generate", "encode_target", "decode_target", "sample"}
    assert {rows for _, rows in calls[0]} == {2}


def test_results_do_not_depend_on_the_number_of_ranks(shards, tmp_path):
    suites = {
        "val": Questions(Questions.Config(shards=shards, batch=2)),
        "again": ReconstructionQuestions(ReconstructionQuestions.Config(shards=shards, batch=4)),
        "loss": TeacherForced(TeacherForced.Config(shards=shards, batch=2)),
    }
    one, _ = evaluate(1, suites, tmp_path / "1")
    two, _ = evaluate(2, suites, tmp_path / "2")
    for label in suites:
        assert timeless(one["suites"][label]) == timeless(two["suites"][label])


def test_questions(shards, tmp_path):
    suite = Questions(Questions.Config(shards=shards, batch=2, shown=2))
    result, _ = evaluate(2, {"val": suite}, tmp_path)
    found = result["suites"]["val"]
    columns = ["kind", "questions", "accuracy (%)", "chance (%)", "majority (%)"]
    # 4 of 11 are dark; red is one of two visible colors; descriptions are not asked.
    assert found["tables"][0]["columns"] == columns
    assert found["tables"][0]["rows"] == [
        ["color", 11, 0.0, 50.0, 100.0],
        ["light", 11, 100.0, 50.0, 63.64],
        ["mean of kinds", 22, 50.0, 50.0, 81.82],
    ]
    assert found["metrics"] == {"accuracy/color": 0.0, "accuracy/light": 1.0, "accuracy/mean": 0.5, "text_match": 0.5}
    assert [(q["question"], q["answer"], q["predicted"], q["correct"]) for q in found["questions"]] == [
        ("how light is 0 ?", "dark", "dark", True),
        ("what color is it ?", "red", "dark"[:4], False),
        ("how light is 1 ?", "bright", "bright", True),
        ("what color is it ?", "red", "brig", False),
    ]
    pictures = tmp_path / "evaluation" / "step-00000003"
    assert Image.open(pictures / found["questions"][0]["image"]).size == (8, 8)
    assert json.loads(evaluation_file(tmp_path, 3).read_text()) == result
    assert scalars(result)["evaluation/val/accuracy/light"] == 1.0
    assert "light                 11        100.00" in as_text(result)


def test_the_text_shows_what_has_changed_since_an_earlier_evaluation():
    def evaluation(rows, columns=("kind", "asked", "right (%)"), title="Accuracy"):
        return {"suites": {"val": {"tables": [{"title": title, "columns": list(columns), "rows": rows}]}}}

    before = evaluation([["color", 11, 25.0], ["count", 7, None], ["gone", 5, 1.0]])
    after = evaluation([["color", 11, 75.5], ["count", 7, 30.0], ["new", 3, 50.0]])
    assert as_text(after, before).splitlines() == [
        "val: Accuracy",
        "kind   asked       right (%)",
        "color     11  25.00 -> 75.50",
        "count      7      - -> 30.00",
        "new        3           50.00",
    ]
    for other in (evaluation([], title="Other"), evaluation([["color", 1]], ("kind", "n")), {"suites": {}}, {}, None):
        assert as_text(after, other) == as_text(after)


def test_sharing_a_row_changes_no_answer(shards, tmp_path):
    results = [
        evaluate(2, {"val": Questions(Questions.Config(shards=shards, batch=3, questions_per_row=n))}, tmp_path) for n in (1, 2)
    ]
    assert timeless(results[0][0]["suites"]["val"]) == timeless(results[1][0]["suites"]["val"])
    assert len(results[0][1][0]) == 2 * len(results[1][1][0])


def test_an_answer_that_ends_too_late_is_wrong(tmp_path):
    image = bright_dark(2)[1][0]
    shards = write_tars(tmp_path / "s", [(image, {"conversations": talk(("how light ?", "brigh"))})])
    found = alone(1, Questions(Questions.Config(shards=shards)), tmp_path)
    assert [(q["predicted"], q["correct"]) for q in found["questions"]] == [("bright", False)]


def test_pairs(tmp_path):
    samples = []
    for i, (image, _) in enumerate(bright_dark(6)):
        # Brightness of 0..5 is d b b d b b: the second picture of the first pair is bright as it should be.
        turn = talk(("how light ?", ["dark", "bright"][i % 2]))
        samples.append((image, {"conversations": turn, "kinds": ["light"], "pair": i // 2}))
    shards = write_tars(tmp_path / "s", samples)
    found = alone(2, Questions(Questions.Config(shards=shards)), tmp_path)
    assert found["tables"][1]["rows"] == [["all", 3, 33.33, 25.0]]


def test_questions_on_reconstructions(shards, tmp_path):
    config = ReconstructionQuestions.Config(shards=shards, batch=4, skip_kinds=["color", "description"], pictures=2)
    found = alone(2, ReconstructionQuestions(config), tmp_path)
    metrics = found["metrics"]
    assert metrics["accuracy/real"] == metrics["accuracy/through_tokenizer"] == metrics["accuracy/own_reconstruction"] == 1
    assert metrics["own_minus_tokenizer"] == 0
    # Sample p is asked about with the picture of sample p + 5 (of 11).
    dark = [i % 3 == 0 for i in range(SAMPLES)]
    agree = sum(dark[i] == dark[(i + 5) % SAMPLES] for i in range(SAMPLES)) / SAMPLES
    assert metrics["accuracy/unrelated_image"] == pytest.approx(agree) and agree < 1
    assert {(p["row"], p["column"]) for p in found["pictures"]} == {
        (row, column) for row in "01" for column in ("real", "through tokenizer", "own reconstruction")
    }


def test_generation(shards, oracle, tmp_path):
    suite = Generation(Generation.Config(shards=shards, batch=4, oracle=oracle, pictures=2, limit=5))

    class Seer:
        """Sees both objects in textured pictures, one in flat ones, a wrong shape and a cone in generated ones."""

        def objects(self, images):
            seen = []
            for image in images:
                spread = float(image.std())
                cube, cone = ("cube", (0.1, 0.5)), ("cone", (0.8, 0.5))
                real = {"red": cube, "blue": cone}
                seen.append(real if spread > 0.02 else {"blue": cone} if spread < 1e-4 else {"blue": cube, "green": cone})
            return seen

    suite.oracle = Seer()
    result, calls = evaluate(2, {"draw": suite}, tmp_path)
    found = result["suites"]["draw"]
    assert [row[:5] for row in found["tables"][0]["rows"]] == [
        ["source", 5, 100.0, 100.0, 100.0],
        ["through tokenizer", 5, 50.0, 50.0, 0.0],
        ["generated", 5, 0.0, 50.0, 0.0],
    ]
    assert found["tables"][0]["rows"][2][-1] == 1.0  # the green cone nobody asked for
    assert found["metrics"]["share_of_ceiling"] == 0.0
    folder = tmp_path / "evaluation" / "step-00000003"
    captions = {p["row"]: p["caption"] for p in found["pictures"]}
    assert captions == {"0": "a dark thing", "1": "a bright thing"}
    drawn = next(p for p in found["pictures"] if p["row"] == "1" and p["column"] == "generated")
    assert Image.open(folder / drawn["file"]).getpixel((0, 0))[0] > 230
    assert Image.open(folder / "draw" / "contact-sheet.png").height > 300


def test_generation_is_the_same_again(shards, tmp_path):
    suites = {"draw": Generation(Generation.Config(shards=shards, batch=4, pictures=3))}
    evaluate(2, suites, tmp_path / "a")
    evaluate(2, suites, tmp_path / "b")
    files = [sorted((tmp_path / x / "evaluation" / "step-00000003" / "draw").glob("*.png")) for x in "ab"]
    assert len(files[0]) == 3 * 3 + 1
    assert [f.read_bytes() for f in files[0]] == [f.read_bytes() for f in files[1]]


def test_tokenizer_leaves_out_what_the_samples_do_not_carry(shards, tmp_path):
    suite = Tokenizer(Tokenizer.Config(shards=shards, batch=4, representations=["pixel", "depth"]))
    (pixel, pictures, decibels), depth = alone(2, suite, tmp_path)["tables"][0]["rows"]
    assert (pixel, pictures) == ("pixel", 11) and 20 < decibels < 40
    assert depth == ["depth", 0, None]


def test_the_gap_shows_whether_the_text_is_used(shards, tmp_path):
    suite = TeacherForced(TeacherForced.Config(shards=shards, batch=4, terms=["caption", "pixel"]))
    metrics = alone(2, suite, tmp_path)["metrics"]
    assert metrics["caption/loss"] == 0  # the fake model believes the caption
    assert metrics["caption/gap"] > 0.3
    assert metrics["pixel/gap"] == 0  # and does not look at the source


def test_training_flags_are_left_as_they_were(shards, tmp_path):
    model = FakeModel().train()
    model.frozen.eval()
    suites = {"val": Questions(Questions.Config(shards=shards))}
    on_ranks(1, lambda world: run_evaluation(model, suites, world, 0, tmp_path))
    assert model.training and not model.frozen.training


def test_an_error_of_one_rank_is_raised_on_all(shards, tmp_path):
    suites = {"val": Questions(Questions.Config(shards=shards, batch=2))}
    failures: list[str] = []

    def work(world):
        with pytest.raises(UserError, match="s0001 does not fit") as caught:
            run_evaluation(FakeModel(FailingProcessor()), suites, world, 0, tmp_path)
        failures.append(str(caught.value))

    on_ranks(2, work)
    assert len(failures) == 2
    assert not evaluation_file(tmp_path, 0).exists()


def test_a_dropped_question_is_an_error(shards, tmp_path):
    suites = {"val": Questions(Questions.Config(shards=shards, questions_per_row=2))}
    with pytest.raises(UserError, match="Question 2 of 2 about sample s0000 does not fit.*questions_per_row"):
        evaluate(1, suites, tmp_path, FakeProcessor(max_length=30))


def test_a_question_that_was_cut_because_it_shares_a_row_is_an_error(shards, tmp_path):
    """Half a question has an answer, but is another question. Alone in its row it is cut as in training."""
    shared, single = (Questions(Questions.Config(shards=shards, questions_per_row=number)) for number in (2, 1))
    with pytest.raises(UserError, match="The 2 questions about sample s0000 do not fit into a row.*questions_per_row"):
        evaluate(1, {"val": shared}, tmp_path, CuttingProcessor())
    cut, whole = (
        evaluate(1, {"val": single}, tmp_path, processor)[0]["suites"]["val"] for processor in (CuttingProcessor(), None)
    )
    assert timeless(cut) == timeless(whole) and cut["questions"]


def test_bad_settings(shards, tmp_path):
    with pytest.raises(ConfigError, match=r"evaluation\.suites\.val\.batch must be at least 1; got 0"):
        fill(Questions.Config, {"shards": shards, "batch": 0}, "evaluation.suites.val")
    with pytest.raises(ConfigError, match=r"evaluation\.suites\.val\.questions_per_row must be at least 1; got 0"):
        fill(Questions.Config, {"shards": shards, "questions_per_row": 0}, "evaluation.suites.val")
    with pytest.raises(ConfigError, match="'captions'. Did you mean 'caption'"):
        fill(TeacherForced.Config, {"shards": shards, "terms": ["captions"]}, "evaluation.suites.loss")
    with pytest.raises(DataError):
        Questions(Questions.Config(shards=str(tmp_path / "nowhere")))
    suite = Questions(Questions.Config(shards=shards, skip_kinds=["light", "color", "description"]))
    with pytest.raises(DataError, match="No questions"):
        evaluate(1, {"val": suite}, tmp_path)


def test_samples_without_captions_cannot_be_drawn(tmp_path):
    image, meta = bright_dark(1)[0]
    shards = write_tars(tmp_path / "s", [(image, {"conversations": meta["conversations"]})])
    with pytest.raises(UserError, match="no `caption`"):
        evaluate(2, {"draw": Generation(Generation.Config(shards=shards))}, tmp_path)


def test_suites_are_found_by_name():
    assert find("evaluation.suites", "questions", Suite) is Questions
    assert find("evaluation.suites", "reconstruction_questions", Suite) is ReconstructionQuestions
    assert find("evaluation.suites", "generation", Suite) is Generation


def test_positions_are_dealt_round_robin(shards):
    index = Questions(Questions.Config(shards=shards)).index
    dealt = on_ranks(3, lambda world: [(p, s.key) for p, s in read_share(index, 7, world)])
    assert [p for p, _ in dealt[1]] == [1, 4]
    assert sorted(pair for of_rank in dealt for pair in of_rank) == [(i, f"s{i:04d}") for i in range(7)]
    shifted = on_ranks(2, lambda world: [s.key for _, s in read_share(index, 7, world, shift=3)])
    assert shifted[1] == ["s0004", "s0006", "s0001"]


def test_lockstep_batches_fill_up():
    batches = on_ranks(2, lambda world: lockstep_batches([[1, 2, 3], [4]][world.rank], 2, world))
    assert batches == [[[1, 2], [3, None]], [[4, None], [None, None]]]


def test_global_random_state_is_not_touched(shards, oracle, tmp_path):
    suites = all_suites(shards, oracle)
    before = torch.random.get_rng_state()
    evaluate(1, suites, tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before)
