"""The site is built without a warning, and reading it asks no other server for anything."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
LOADED = re.compile(r"<(?:link|script|img|iframe|source)\b[^>]*?\b(?:href|src|srcset)=[\"']?((?:https?:)?//[^\"' >]+)")
"""What a browser fetches by itself from another server; links that are clicked are not."""


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    if find_spec("material") is None:
        pytest.skip("mkdocs-material is not installed: pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_is_in_the_site(site):
    missing = []
    for page in (REPOSITORY / "docs").rglob("*.md"):
        name = page.relative_to(REPOSITORY / "docs").with_suffix("")
        folder = name.parent if name.name in ("index", "README") else name
        if not (site / folder / "index.html").is_file():
            missing.append(str(name))
    assert missing == []


def test_reading_a_page_asks_no_other_server(site):
    files = [*site.rglob("*.html")]
    found = {address for file in files for address in LOADED.findall(file.read_text(encoding="utf-8"))}
    styles = {
        a for file in site.rglob("*.css") for a in re.findall(r"(?:url\(|@import)[\"' ]*(https?://[^\"')]+)", file.read_text())
    }
    assert len(files) > 20 and found | styles == set()


def test_what_is_loaded_is_seen():
    assert LOADED.findall('<script async src="https://cdn.test/x.js"></script><a href="https://a.test">') == [
        "https://cdn.test/x.js"
    ]
    assert LOADED.findall("<link rel=stylesheet href=//fonts.test/css>") == ["//fonts.test/css"]
