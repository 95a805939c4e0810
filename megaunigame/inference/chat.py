"""A conversation with a model, line by line: questions, and commands that begin with a slash."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from torch import Tensor

from megaunigame.errors import DataError, UserError
from megaunigame.inference.drawing import write_picture
from megaunigame.inference.model import Answer, Model, PictureRequest, Question, Turn
from megaunigame.inference.pictures import as_pixels
from megaunigame.inference.redraws import chosen
from megaunigame.inference.settings import AnswerSettings, DrawSettings

HELP = """\
A line is a question; it is answered after the earlier ones.
  /image PATH [PATH ...]   begin a new conversation about these pictures
  /draw TEXT               draw a picture; each time another one
  /redraw NAME             draw the newest picture again: pixel, depth, segmentation or edges
  /reset                   begin a new conversation about nothing
  /quit                    end"""


@dataclass(frozen=True)
class Reply:
    text: str
    picture: Path | None = None
    """A picture that was drawn."""
    ends: bool = False


@dataclass(frozen=True)
class Fitted:
    """An answer, and how many of the oldest turns did not fit next to it."""

    answer: Answer
    left_out: int


def answer_fitted(
    model: Model, text: str, pictures: Sequence[Tensor], turns: Sequence[Turn], settings: AnswerSettings
) -> Fitted:
    """Answer after as many of the newest turns as fit. Raises DataError when the question alone does not fit."""
    for first in range(len(turns) + 1):
        try:
            (answer,) = model.answer([Question(text, pictures, turns[first:], item=str(len(turns)))], settings)
        except DataError:
            if first == len(turns):
                raise
        else:
            return Fitted(answer, first)
    raise AssertionError("the last round returns or raises")


class Chat:
    """What was shown and said so far."""

    def __init__(self, model: Model, folder: Path, answers: AnswerSettings, draws: DrawSettings, redraws: DrawSettings):
        """`folder`: where drawn pictures are saved; made when there is one."""
        self.model, self.folder, self.answers, self.draws, self.redraws = model, folder, answers, draws, redraws
        self.pictures: list[Tensor] = []
        self.turns: list[Turn] = []
        self.newest: Tensor | None = None
        """The picture that was shown or drawn last."""
        self._drawn = 0
        self._commands: dict[str, Callable[[str], Reply]] = {
            "/image": self._image,
            "/draw": self._draw,
            "/redraw": self._redraw,
            "/reset": self._reset,
            "/help": lambda _: Reply(HELP),
            "/quit": lambda _: Reply("", ends=True),
        }

    def reply(self, line: str) -> Reply:
        """To one line. What a user can fix is said in the reply."""
        word, _, rest = line.strip().partition(" ")
        try:
            if word.startswith("/"):
                if word not in self._commands:
                    return Reply(f"Unknown command {word}.\n{HELP}")
                return self._commands[word](rest.strip())
            return self._ask(line.strip()) if word else Reply(HELP)
        except UserError as error:
            return Reply(str(error))

    def _ask(self, text: str) -> Reply:
        fitted = answer_fitted(self.model, text, self.pictures, self.turns, self.answers)
        self.turns = [*self.turns[fitted.left_out :], (text, fitted.answer.text)]
        notes = [f"(the oldest {fitted.left_out} turns no longer fit)"] * (fitted.left_out > 0)
        notes += [f"(cut after {self.answers.max_tokens} tokens)"] * fitted.answer.cut
        return Reply(" ".join([fitted.answer.text, *notes]))

    def _image(self, rest: str) -> Reply:
        try:
            paths = [Path(word).expanduser() for word in shlex.split(rest)]
        except ValueError as error:
            return Reply(f"{rest} cannot be read ({error}). Put a path with blanks into quotes.")
        if not paths:
            return Reply("Type /image PATH.")
        self.pictures = [as_pixels(path) for path in paths]
        self.newest, self.turns = self.pictures[-1], []
        sizes = ", ".join(f"{picture.shape[2]} x {picture.shape[1]}" for picture in self.pictures)
        return Reply(f"A new conversation about {len(paths)} picture(s): {sizes} pixels.")

    def _draw(self, text: str) -> Reply:
        if not text:
            return Reply("Type /draw TEXT.")
        request = PictureRequest(text, sample=self._drawn)
        return self._saved(self.model.picture([request], self.draws)[0], "drawn")

    def _redraw(self, name: str) -> Reply:
        if self.newest is None:
            return Reply("There is no picture yet. Type /image PATH or /draw TEXT.")
        how = chosen(name, self.model.source.redraws)
        request = PictureRequest(how.prompt, self.newest, sample=self._drawn)
        return self._saved(self.model.picture([request], self.redraws, how.geometry)[0], name)

    def _reset(self, _: str) -> Reply:
        self.pictures, self.turns, self.newest = [], [], None
        return Reply("A new conversation.")

    def _saved(self, picture: Tensor, name: str) -> Reply:
        self._drawn += 1
        file = next(file for n in count(1) if not (file := self.folder / f"{name}-{n:03d}.png").exists())
        write_picture(picture, file)
        if name == "drawn":
            self.newest = picture
        return Reply(f"Saved {file}", picture=file)


def talk(chat: Chat, read: Callable[[], str], write: Callable[[str], object]) -> None:
    """Read lines and write replies, until /quit, the end of the input, or Ctrl-C."""
    write(HELP)
    while True:
        try:
            reply = chat.reply(read())
        except (EOFError, KeyboardInterrupt):
            write("")
            return
        if reply.ends:
            return
        write(reply.text)
