"""Asking, drawing and redrawing with the shipped tiny model."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import megaunigame
from megaunigame.errors import CapacityError, ConfigError, DataError, ModelError
from megaunigame.inference import loading, pictures
from megaunigame.inference.pictures import as_pixels
from tests.inference.conftest import WEIGHTS
from tests.multi_process.launcher import REPOSITORY


def short(scene) -> list[tuple[str, str]]:
    return [(q, a) for q, a in scene.questions if len(a.split()) == 1]


def test_the_package_has_its_parts_and_is_imported_at_once():
    light = "import sys, megaunigame; sys.exit(bool({'torch', 'numpy', 'omegaconf'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", light], cwd=REPOSITORY).returncode == 0
    assert megaunigame.load.__module__ == "megaunigame.inference.loading"
    assert {"load", "train", "__version__"} <= set(dir(megaunigame))
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = megaunigame.lode


def test_it_answers_most_questions_about_scenes_right(tiny, scenes):
    asked = [(scene.picture, *pair) for scene in scenes for pair in short(scene)]
    answers = tiny.ask([picture for picture, _, _ in asked], [question for _, question, _ in asked], max_tokens=8, batch=16)
    right = sum(answer == reference for answer, (_, _, reference) in zip(answers, asked, strict=True))
    assert len(asked) > 20 and right / len(asked) > 0.6  # always the most frequent answer: 0.31


def test_one_picture_for_all_questions_is_the_picture_of_each(tiny, scenes):
    questions = [question for question, _ in short(scenes[0])]
    assert tiny.ask(scenes[0].picture, questions, max_tokens=8) == [
        tiny.ask(scenes[0].picture, question, max_tokens=8) for question in questions
    ]


def test_the_answer_depends_on_the_pictures(tiny, scenes):
    question = "how many objects are there ?"
    answers = {tiny.ask(scene.picture, question, max_tokens=4) for scene in scenes}
    assert len(answers) > 1
    several = tiny.ask([scenes[0].picture, scenes[1].picture], question, max_tokens=4)
    assert isinstance(several, str) and isinstance(tiny.ask(None, "how many ?", max_tokens=4), str)


def test_a_path_an_image_an_array_and_a_tensor_are_the_same_picture(tiny, scenes):
    file = scenes[0].picture
    image = Image.open(file)
    forms = [str(file), file, image, np.asarray(image.convert("RGB")), as_pixels(file)]
    for form in forms:
        assert torch.equal(as_pixels(form), as_pixels(file))
    transparent = Image.open(file).convert("RGBA")
    transparent.putalpha(0)
    assert (as_pixels(transparent) == 255).all()
    assert torch.equal(as_pixels(image.convert("L")), as_pixels(np.asarray(image.convert("L"))))


@pytest.mark.timeout(20)
def test_a_pipe_a_device_and_a_huge_file_are_no_pictures(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", "/dev/zero"):
        with pytest.raises(DataError, match="cannot be read: it is not a regular file"):
            as_pixels(path)
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        as_pixels(tmp_path)
    monkeypatch.setattr(pictures, "LARGEST_PICTURE", 9)
    (tmp_path / "large.png").write_bytes(bytes(10))
    with pytest.raises(DataError, match="it has more than the 9 bytes that are read"):
        as_pixels(tmp_path / "large.png")


def test_earlier_turns_are_read(tiny, scenes):
    picture, question = scenes[0].picture, short(scenes[0])[0][0]
    processor = tiny.network.processor
    alone = processor.prompt_inputs([[as_pixels(picture)]], [question])
    after = processor.prompt_inputs([[as_pixels(picture)]], [question], [[("is it day ?", "yes")]])
    assert after.tokens.shape[1] > alone.tokens.shape[1]
    assert isinstance(tiny.ask(picture, question, history=[("is it day ?", "yes")], max_tokens=8), str)
    both = tiny.ask(picture, [question, question], history=[[], [("is it day ?", "yes")]], max_tokens=8)
    assert both[0] == tiny.ask(picture, question, max_tokens=8)


def test_a_temperature_draws_answers_from_the_seed(tiny, scenes):
    def said(**options):
        texts = [question for question, _ in scenes[0].questions]
        return tiny.ask(scenes[0].picture, texts, max_tokens=24, temperature=2.0, **options)

    assert said(seed=1) == said(seed=1, batch=1) != said(seed=2)


def test_a_picture_depends_on_seed_text_and_number_alone(tiny, scenes):
    captions = [scene.caption for scene in scenes[:3]]
    one, two, three = tiny.draw(captions, seed=3, batch=3)
    assert one.size == (SIDE := tiny.network.processor.image_size, SIDE)
    assert [list(p.getdata()) for p in tiny.draw(captions, seed=3, batch=1)] == [list(p.getdata()) for p in (one, two, three)]
    first, second = tiny.draw(captions[0], count=2, seed=3)
    assert list(first.getdata()) == list(one.getdata()) != list(second.getdata())
    assert list(tiny.draw(captions[0], seed=4).getdata()) != list(one.getdata())
    (same,), (another,) = tiny.draw([captions[0], captions[0]], count=1, seed=3)
    assert list(same.getdata()) == list(one.getdata()) != list(another.getdata())


def test_guidance_is_that_of_the_folder(tiny):
    assert (of_folder := tiny.guidance) == 3.0
    tiny.guidance = 1.0
    try:
        named = tiny.draw("a red cube .", temperature=0)
    finally:
        tiny.guidance = of_folder
    assert list(named.getdata()) != list(tiny.draw("a red cube .", temperature=0).getdata())


def test_a_redrawn_picture_is_nearer_to_its_source_than_to_others(tiny, scenes):
    pictures = [scene.picture for scene in scenes[:4]]
    drawn = [as_pixels(image).float() for image in tiny.redraw(pictures, "pixel")]
    sources = [as_pixels(picture).float() for picture in pictures]
    for number, picture in enumerate(drawn):
        distances = [float((picture - source).abs().mean()) for source in sources]
        assert distances.index(min(distances)) == number
    assert torch.equal(as_pixels(tiny.redraw(pictures[2])).float(), drawn[2])


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda m: m.ask("none.png", "what ?"), DataError, "The picture none.png cannot be read: No such file"),
        (lambda m: m.ask(3, "what ?"), DataError, "A picture is a int"),
        (lambda m: m.ask([3], "what ?"), DataError, "A picture is a int. Give a path"),
        (lambda m: m.ask(np.zeros((4, 4, 3)), "what ?"), DataError, r"an array \(4, 4, 3\) of float64"),
        (lambda m: m.ask(torch.zeros(4, 4, 3), "what ?"), DataError, r"a tensor \(4, 4, 3\) of torch.float32"),
        (lambda m: m.ask(None, "what ?" * 400), DataError, "The question has .* tokens, with 0 picture"),
        (lambda m: m.ask(None, ["a", 3]), ConfigError, "A text is a int"),
        (lambda m: m.ask(None, 3), ConfigError, "A text is a int"),
        (lambda m: m.ask([None], ["a", "b"]), ConfigError, "2 texts, and pictures has 1 entries"),
        (lambda m: m.ask(None, "what ?", history=["a"]), ConfigError, "An earlier turn is 'a'"),
        (lambda m: m.ask(None, "what ?", max_tokens=0), ConfigError, "max_tokens must be at least 1; got 0"),
        (lambda m: m.ask(None, "what ?", temperature=-1), ConfigError, "temperature must be at least 0"),
        (lambda m: m.draw("a " * 2000), DataError, "The text is too long for a row"),
        (lambda m: m.draw("a", count=0), ConfigError, "count must be a whole number, 1 or more; got 0"),
        (lambda m: m.draw(["a"], batch=0), ConfigError, "batch must be a whole number"),
        (
            lambda m: m.redraw(np.zeros((4, 4, 3), np.uint8), "dept"),
            ConfigError,
            "Unknown representation 'dept'. Did you mean 'depth'",
        ),
        (lambda m: m.redraw(np.zeros((4, 4, 3), np.uint8), geometry="round"), ConfigError, "Unknown geometry 'round'"),
    ],
)
def test_what_is_not_legal_is_said(tiny, call, error, message):
    with pytest.raises(error, match=message):
        call(tiny)


def test_a_longer_row_needs_a_larger_max_length():
    with pytest.raises(DataError, match="38 more are for the answer, and a row has 40"):
        megaunigame.load(WEIGHTS, device="cpu", max_length=40).ask(None, "what ?", max_tokens=38)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"device": "cuda:9"}, "No device cuda:9"),
        ({"device": "gpu"}, "'gpu' .* is not cpu, cuda or cuda:N"),
        ({"dtype": "int8"}, "Unknown dtype 'int8'"),
        ({"max_length": 0}, "max_length .* must be 1 or more; got 0"),
        ({"base": "x"}, "is a whole model, which has no base"),
        ({"family": "janos"}, "Unknown models name 'janos'. Did you mean 'janus'"),
    ],
)
def test_options_that_are_not_legal_are_refused_before_weights_are_read(options, message):
    with pytest.raises(ConfigError, match=message):
        megaunigame.load(WEIGHTS, **options)


def test_a_model_whose_numbers_overflow_is_refused(tiny):
    norm = tiny.network.language_model.norm.weight
    kept = norm.clone()
    norm[3] = torch.inf
    try:
        for use in (lambda: tiny.ask(None, "what ?", max_tokens=2), lambda: tiny.draw("a red cube .", temperature=0.0)):
            with pytest.raises(ModelError, match="not finite.*type --dtype bfloat16"):
                use()
    finally:
        norm.copy_(kept)


def no_memory(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory.")


def test_what_to_type_when_memory_ends(tiny, monkeypatch):
    monkeypatch.setattr(tiny.network, "answer", no_memory)
    monkeypatch.setattr(tiny.network, "sample", no_memory)
    with pytest.raises(CapacityError, match=r"5 row\(s\) do not fit .* Type --batch 2 "):
        tiny.ask(None, ["what ?"] * 5)
    for use in (lambda: tiny.ask(None, "what ?"), lambda: tiny.draw("a red cube .")):
        with pytest.raises(CapacityError, match=r"1 row\(s\) do not fit .* Type a smaller --max-length"):
            use()
    monkeypatch.setattr(loading, "load_whole", no_memory)
    with pytest.raises(CapacityError, match="does not fit into the memory of cpu in float32. Type --dtype bfloat16"):
        megaunigame.load(WEIGHTS, device="cpu")
    with pytest.raises(CapacityError, match="in bfloat16. Take a GPU with more memory"):
        megaunigame.load(WEIGHTS, device="cpu", dtype="bfloat16")
