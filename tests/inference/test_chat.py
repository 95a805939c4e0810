"""The conversation of the terminal, with the shipped tiny model."""

from __future__ import annotations

from unittest.mock import Mock

import pytest
import torch

from megaunigame.commands import chat as command
from megaunigame.errors import ConfigError
from megaunigame.inference.chat import HELP, Chat, talk
from megaunigame.inference.pictures import as_pixels
from megaunigame.inference.settings import AnswerSettings, DrawSettings
from megaunigame.launching import options_of


@pytest.fixture
def chat(tiny, tmp_path) -> Chat:
    return Chat(
        tiny, tmp_path / "drawn", AnswerSettings(max_tokens=8), DrawSettings(guidance=5.0), DrawSettings(temperature=0.0)
    )


def test_questions_read_the_picture_and_the_earlier_turns(chat, tiny, scenes):
    picture = scenes[0].picture
    first, second = "how many objects are there ?", "is it day ?"
    assert chat.reply(f"/image '{picture}'").text == "A new conversation about 1 picture(s): 64 x 64 pixels."
    said = chat.reply(first).text
    assert said == tiny.ask(picture, first, max_tokens=8)
    assert chat.reply(second).text.startswith(tiny.ask(picture, second, history=[(first, said)], max_tokens=8))
    assert len(chat.turns) == 2
    chat.reply(f"/image {picture} {scenes[1].picture}")
    assert chat.turns == [] and len(chat.pictures) == 2
    chat.reply("/reset")
    assert chat.pictures == [] and chat.reply(first).text.startswith(tiny.ask(None, first, max_tokens=8))


def test_drawn_pictures_are_saved_and_can_be_redrawn(chat, scenes):
    one, two = chat.reply("/draw a red cube ."), chat.reply("/draw a red cube .")
    assert (one.picture.name, two.picture.name) == ("drawn-001.png", "drawn-002.png") and f"Saved {one.picture}" == one.text
    assert one.picture.read_bytes() != two.picture.read_bytes()
    assert (as_pixels(two.picture) == chat.newest).all()
    again = chat.reply("/redraw pixel")
    assert again.picture.name == "pixel-001.png" and chat.newest is not None
    chat.reply(f"/image {scenes[3].picture}")
    assert chat.reply("/redraw pixel").picture.read_bytes() != again.picture.read_bytes()


def test_the_oldest_turns_are_left_out_when_they_do_not_fit(chat, scenes):
    chat.reply(f"/image {scenes[0].picture}")
    question = "is there a red cube left of the blue ball ? " * 4
    replies = [chat.reply(question).text for _ in range(12)]
    assert sum("no longer fit)" in reply for reply in replies) > 0 and len(chat.turns) < 12
    assert "The question has" in chat.reply(question * 20).text


@pytest.mark.parametrize(
    "line, said",
    [
        ("", "A line is a question"),
        ("/help", "/redraw NAME"),
        ("/dra x", "Unknown command /dra"),
        ("/draw", "Type /draw TEXT."),
        ("/image", "Type /image PATH."),
        ("/image none.png", "The picture none.png cannot be read"),
        ("/image 'a", "Put a path with blanks into quotes"),
        ("/redraw depth", "There is no picture yet"),
    ],
)
def test_what_cannot_be_done_is_said(chat, line, said):
    reply = chat.reply(line)
    assert said in reply.text and not reply.ends and reply.picture is None


def test_an_unknown_representation_names_the_nearest(chat):
    chat.reply("/draw a red cube .")
    assert "Did you mean 'depth'?" in chat.reply("/redraw dept").text


def test_a_question_without_memory_does_not_end_the_conversation(chat, tiny, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(tiny.network, "answer", Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory.")))
        assert "1 row(s) do not fit into the memory of the GPU" in chat.reply("is it day ?").text
    assert chat.turns == [] and not chat.reply("is it day ?").ends and len(chat.turns) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--web", "--out", "x"], "--out is for the terminal"),
        (["--host", "127.0.0.1"], "--host is of the page. Type --web too, or leave out --host."),
        (["--port", "7860"], "--port is of the page"),
        (["--guidance", "-1"], "guidance must be at least 0; got -1.0"),
    ],
)
def test_what_does_not_fit_together_is_refused_before_a_model_is_looked_for(words, said):
    parser = options_of(command.__doc__)
    command.add_options(parser)
    with pytest.raises(ConfigError, match=said):
        command.run(parser.parse_args(["no such model", *words]))


@pytest.mark.parametrize("end", ["/quit", EOFError, KeyboardInterrupt])
def test_a_conversation_in_the_terminal_ends(chat, end):
    lines, written = iter(["/reset", end, "/help"]), []

    def read() -> str:
        line = next(lines)
        if isinstance(line, str):
            return line
        raise line

    talk(chat, read, written.append)
    assert written[:2] == [HELP, "A new conversation."] and list(lines) == ["/help"]
