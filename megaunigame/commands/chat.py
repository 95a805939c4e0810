"""Talk to a model, in the terminal or on a web page.

    megaunigame chat runs/tiny_sft
    megaunigame chat models/Janus-Pro-7B --web
    megaunigame chat models/Janus-Pro-7B --web --host 0.0.0.0 --port 8000      other machines may use it, without a password

In the terminal a line is a question; /image PATH shows a picture, /draw TEXT and /redraw depth draw one and save it in --out,
/help names the rest. The page needs gradio: pip install 'megaunigame[web]'. docs/inference.md
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_options(parser: argparse.ArgumentParser) -> None:
    from megaunigame.inference.command_options import add_model_options, add_settings
    from megaunigame.inference.settings import AnswerSettings

    add_model_options(parser)
    parser.add_argument("--web", action="store_true", help="a web page in place of the terminal")
    parser.add_argument("--host", help="address of the page; default 127.0.0.1, this machine alone")
    parser.add_argument("--port", type=int, help="of the page; default 7860")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for pictures of the terminal; default drawn")
    parser.add_argument(
        "--guidance", type=float, metavar="X", help="of /draw; default: what the folder or its family names, else 5"
    )
    alone = "of answers, not of /draw"
    add_settings(parser, AnswerSettings, {"max_tokens": alone, "temperature": alone})


def run(options: argparse.Namespace) -> None:
    from megaunigame.errors import ConfigError
    from megaunigame.inference.chat import Chat, talk
    from megaunigame.inference.command_options import load_with, settings_of, source_of
    from megaunigame.inference.settings import REDRAW_TEMPERATURE, AnswerSettings, DrawSettings
    from megaunigame.settings import fill

    if options.web and options.out is not None:
        raise ConfigError("--out is for the terminal: on the page, each picture has a button to save it. Leave out --out.")
    for name in ("host", "port"):
        if not options.web and getattr(options, name) is not None:
            raise ConfigError(f"--{name} is of the page. Type --web too, or leave out --{name}.")
    answers = settings_of(options, AnswerSettings)
    if options.web:
        from megaunigame.inference.web import HOST, PORT, check_gradio, check_port, serve

        host, port = options.host or HOST, PORT if options.port is None else options.port
        check_gradio()
        check_port(host, port)
    if options.guidance is not None:
        fill(DrawSettings, {"guidance": options.guidance}, "")  # refused before the model loads
    source = source_of(options)
    model = load_with(options, source)
    if options.guidance is not None:
        model.guidance = options.guidance
    draws = fill(DrawSettings, {"guidance": model.guidance, "seed": answers.seed}, "")
    if options.web:
        serve(model, answers, draws, host=host, port=port)
        return
    redraws = DrawSettings(temperature=REDRAW_TEMPERATURE, seed=answers.seed)
    _edit_lines()
    chat = Chat(model, options.out or Path("drawn"), answers, draws, redraws)
    talk(chat, lambda: input("> "), lambda text: print(text, flush=True))


def _edit_lines() -> None:
    """Arrow keys and a history of lines, where Python has the library."""
    import contextlib

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401
