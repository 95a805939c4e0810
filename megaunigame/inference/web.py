"""The model on a web page: ask about pictures, draw, redraw. Needs gradio, the extra `web`.

The page loads nothing from other hosts: fonts are those of the system, and there is no telemetry and no share link.
"""

from __future__ import annotations

import html
import os
import socket
from collections.abc import Callable
from functools import wraps
from importlib.util import find_spec
from threading import Lock
from typing import Any

from PIL import Image

from megaunigame.errors import CapacityError, ConfigError, UserError
from megaunigame.inference.chat import answer_fitted
from megaunigame.inference.model import Model
from megaunigame.inference.pictures import as_pixels
from megaunigame.inference.settings import REDRAW_TEMPERATURE, AnswerSettings, DrawSettings
from megaunigame.registry import available
from megaunigame.representations.base import Representation

INSTALL = "The page needs gradio. Type: pip install 'megaunigame[web]'; or leave out --web to chat in the terminal."
FONTS = ("ui-sans-serif", "system-ui", "sans-serif")
SAVE = ["download", "fullscreen"]
"""Of a drawn picture. gradio's own choice has a button that uploads it to a public place."""
HOST, PORT, LAST_PORT = "127.0.0.1", 7860, 65535
MOST_PICTURES = 8
"""Of one press of "Draw"."""


def check_port(host: str, port: int) -> None:
    """Raise ConfigError when no page can be opened there: before the model loads."""
    if not 1 <= port <= LAST_PORT:
        raise ConfigError(f"--port must be a number from 1 to {LAST_PORT}; got {port}.")
    try:
        family, kind, number, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, number) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(place)
    except OSError as error:  # also of a host that is not known
        raise ConfigError(_closed(host, port, error)) from error


def _closed(host: str, port: int, error: OSError) -> str:
    return f"The page cannot be opened at {host}:{port}: {error}. Type another --port, or another --host."


def check_gradio() -> None:
    """Raise ConfigError when gradio is not installed."""
    if find_spec("gradio") is None:
        raise ConfigError(INSTALL)


def serve(model: Model, answers: AnswerSettings, draws: DrawSettings, *, host: str, port: int, wait: bool = True) -> Any:
    """Open the page, and return when it is closed (Ctrl-C); without `wait` return the page at once.

    Raises ConfigError when the port is taken.
    """
    check_gradio()
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    import gradio

    page = build_page(model, answers, draws)
    try:
        page.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            theme=gradio.themes.Default(font=FONTS, font_mono=("ui-monospace", "monospace")),
            footer_links=[],
        )
    except OSError as error:
        raise ConfigError(_closed(host, port, error)) from error
    print(f"Open http://{host}:{port}  (Ctrl-C ends it)", flush=True)
    if wait:
        page.block_thread()
    return page


def build_page(model: Model, answers: AnswerSettings, draws: DrawSettings) -> Any:
    """gradio.Blocks of three tabs. One request at a time reaches the model."""
    import gradio

    busy = Lock()

    def shown(work: Callable[..., Any]) -> Callable[..., Any]:
        """An error of the user is shown on the page."""

        @wraps(work)
        def run(*given: Any) -> Any:
            try:
                with busy:
                    return work(*given)
            except UserError as error:
                raise gradio.Error(str(error), print_exception=False) from error

        return run

    @shown
    def ask(text: str, said: list[dict[str, Any]], picture: Image.Image | None) -> tuple[str, list[dict[str, Any]]]:
        if not text.strip():
            return text, said
        pictures = [] if picture is None else [as_pixels(picture)]
        fitted = answer_fitted(model, text.strip(), pictures, _turns(said), answers)
        asked, reply = _shown_as_it_is(text.strip()), _shown_as_it_is(fitted.answer.text)
        return "", [*said, {"role": "user", "content": asked}, {"role": "assistant", "content": reply}]

    @shown
    def draw(*typed: Any) -> list[Image.Image]:
        return draw_typed(model, draws, *typed)

    @shown
    def redraw(picture: Image.Image | None, to: str) -> Image.Image:
        if picture is None:
            raise ConfigError("Choose a picture first.")
        return model.redraw(picture, to, temperature=REDRAW_TEMPERATURE)  # type: ignore[no-any-return]

    given: dict[str, Any] = {"type": "pil", "label": "Picture", "height": 320, "buttons": ["fullscreen"]}
    given |= {"sources": ["upload", "clipboard"]}
    many: dict[str, Any] = {"columns": 2, "fit_columns": False, "height": 520, "object_fit": "contain", "buttons": SAVE}
    with gradio.Blocks(title="megaunigame", analytics_enabled=False) as page:
        gradio.Markdown(f"### megaunigame\n{model.source.family.name}, {model.source.what}, on {model.device}")
        with gradio.Tab("Ask"):
            with gradio.Row():
                with gradio.Column(scale=1, min_width=280):
                    about = gradio.Image(**given, elem_id="about")
                with gradio.Column(scale=2, min_width=280):
                    # Neither Markdown nor HTML of an answer is rendered: it may name a picture on another host.
                    plain: dict[str, Any] = {"render_markdown": False, "buttons": ["copy_all"]}
                    talk = gradio.Chatbot(label="Conversation", height=320, elem_id="talk", **plain)
                    text = gradio.Textbox(label="Question", placeholder="What is in the picture?", elem_id="question")
                    with gradio.Row():
                        send = gradio.Button("Ask", variant="primary", elem_id="ask")
                        reset = gradio.Button("New conversation", elem_id="reset")
            for begin in (text.submit, send.click):
                begin(ask, [text, talk, about], [text, talk])
            reset.click(lambda: [], None, talk)
            about.change(lambda: [], None, talk)
        with gradio.Tab("Draw"):
            with gradio.Row():
                with gradio.Column(scale=1, min_width=280):
                    prompt = gradio.Textbox(label="Text", lines=2, elem_id="prompt")
                    number = gradio.Slider(1, MOST_PICTURES, value=1, step=1, label="Pictures")
                    guidance = gradio.Slider(1, 15, value=draws.guidance, step=0.5, label="Guidance")
                    temperature = gradio.Slider(0, 2, value=draws.temperature, step=0.05, label="Temperature")
                    seed = gradio.Number(value=draws.seed, precision=0, minimum=0, label="Seed")
                    drawing = gradio.Button("Draw", variant="primary", elem_id="draw")
                with gradio.Column(scale=2, min_width=280):
                    gallery = gradio.Gallery(label="Drawn", elem_id="drawn", format="png", **many)
            drawing.click(draw, [prompt, number, guidance, temperature, seed], gallery)
        with gradio.Tab("Redraw"):
            with gradio.Row():
                with gradio.Column(scale=1, min_width=280):
                    source = gradio.Image(**given, elem_id="source")
                    names = available("representations", Representation)
                    to = gradio.Radio(names, value="pixel", label="As", elem_id="as")
                    redrawing = gradio.Button("Redraw", variant="primary", elem_id="redraw")
                with gradio.Column(scale=2, min_width=280):
                    redrawn = gradio.Image(label="Redrawn", height=320, elem_id="redrawn", format="png", buttons=SAVE)
            redrawing.click(redraw, [source, to], redrawn)
    return page


def draw_typed(
    model: Model,
    draws: DrawSettings,
    text: str,
    count: float | None,
    guidance: float | None,
    temperature: float | None,
    seed: float | None,
) -> list[Image.Image]:
    """What "Draw" draws. A field that was cleared is None, and has its default."""
    if not text.strip():
        raise ConfigError("Type a text first.")
    pictures = 1 if count is None else int(count)
    options: dict[str, Any] = {
        "guidance": draws.guidance if guidance is None else float(guidance),
        "temperature": draws.temperature if temperature is None else float(temperature),
        "seed": draws.seed if seed is None else int(seed),
    }
    try:
        return model.draw(text.strip(), count=pictures, **options)  # type: ignore[no-any-return]
    except CapacityError as error:
        raise CapacityError(f"{pictures} picture(s) do not fit into the memory of the GPU. Choose fewer.") from error


def _turns(said: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """(question, answer) of what the page shows."""
    texts = [html.unescape(_text(message["content"])) for message in said]
    return list(zip(texts[::2], texts[1::2], strict=True))


def _shown_as_it_is(text: str) -> str:
    """gradio puts what is not Markdown into the page as HTML."""
    return html.escape(text, quote=False)


def _text(content: Any) -> str:
    """The page gives a text back as a list of parts."""
    if isinstance(content, str):
        return content
    return "".join(part if isinstance(part, str) else str(part.get("text", "")) for part in content)
