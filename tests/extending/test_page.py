"""docs/extending.md shows the examples as they are."""

from __future__ import annotations

import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = (REPOSITORY / "docs" / "extending.md").read_text()


def test_code_blocks_are_the_files():
    blocks = re.findall(r"`(tests/extending/examples/[\w/.]+\.py)`:\n\n```python\n(.*?)```", PAGE, re.DOTALL)
    shown = {path: code for path, code in blocks}
    assert len(shown) == PAGE.count("```python") == len(blocks)
    examples = (REPOSITORY / "tests" / "extending" / "examples").rglob("*.py")
    assert shown == {file.relative_to(REPOSITORY).as_posix(): file.read_text() for file in examples}


def test_files_that_the_page_names_exist():
    named = re.findall(r"`((?:megaunigame|tests|data_prep)/[\w/]*(?:\.py)?)`", PAGE)
    assert len(named) > 20 and all((REPOSITORY / name).exists() for name in named)


def test_the_page_can_be_reached():
    assert "(docs/extending.md)" in (REPOSITORY / "README.md").read_text()
    assert "(extending.md)" in (REPOSITORY / "docs" / "architecture.md").read_text()
