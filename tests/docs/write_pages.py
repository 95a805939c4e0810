"""Writes docs/config.md and docs/api.md, and the tables of commands, recipes and families, from the source.

python -m tests.docs.write_pages
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.docs.api_page import api_page
from tests.docs.settings_page import settings_page
from tests.docs.tables import commands_table, families_table, recipes_table, short_families_table

REPOSITORY = Path(__file__).resolve().parents[2]
BEGIN, END = "<!-- written by tests/docs/write_pages.py -->", "<!-- end of what is written -->"


def pages() -> dict[Path, str]:
    """Page -> what it should hold."""
    docs = REPOSITORY / "docs"
    tables = {
        docs / "commands.md": commands_table(),
        docs / "recipes.md": recipes_table(),
        docs / "models" / "README.md": families_table(),
        REPOSITORY / "README.md": short_families_table(),
    }
    return {docs / "config.md": settings_page(), docs / "api.md": api_page()} | {
        page: _with(page, table) for page, table in tables.items()
    }


def _with(page: Path, table: str) -> str:
    """The page with another table. Raises ValueError without its two marks."""
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page.name} has no lines `{BEGIN}` and `{END}`, between which the table stands.")
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"


def main() -> int:
    for page, text in pages().items():
        if not page.exists() or page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")
            print(f"{page.relative_to(REPOSITORY)}: written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
