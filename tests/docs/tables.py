"""Tables of the documents: recipes with their plans, families, commands."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from pathlib import Path

from megaunigame.command_line import FOLDER, command_names, typed_name
from megaunigame.commands.recipes import purpose
from megaunigame.config import load_recipe
from megaunigame.models.base import UnifiedModel
from megaunigame.objectives.unigame.paths import lacks
from megaunigame.objectives.unigame.settings import PATHS
from megaunigame.planning.header import BLOCK, Header
from megaunigame.registry import available, find
from tests.models.test_sizes import TOTALS

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPES = REPOSITORY / "launch" / "recipes"
FAMILIES = REPOSITORY / "docs" / "models"
MADE = {"lora": "LoRA", "full": "full"}
NOT_PLANNED = "not planned"


def recipes_table() -> str:
    rows = [row for recipe in sorted(RECIPES.glob("*.yaml"), key=_order) for row in _rows_of(recipe)]
    return _table(("recipe", "what", "trained", "hardware", "memory of a GPU", "seconds a step"), rows)


def _order(recipe: Path) -> tuple[bool, str]:
    """Real sizes first."""
    return recipe.stem.startswith("tiny_"), recipe.stem


def _rows_of(recipe: Path) -> list[tuple[str, ...]]:
    """One row per plan of its header; one row without."""
    text = recipe.read_text(encoding="utf-8")
    name, what = f"`{recipe.stem}`", short(purpose(recipe))
    if not BLOCK.search(text):
        trained = MADE[load_recipe(str(recipe), []).model.train]
        return [(name, what, trained, _processes(text, recipe.name), NOT_PLANNED, NOT_PLANNED)]
    header = Header(recipe)
    pairs = zip(header.configurations, _plans(header.block), strict=True)
    rows = [(MADE[configuration.recipe.model.train], *plan) for configuration, plan in pairs]
    return [(name, what, *rows[0]), *(("", "", *row) for row in rows[1:])]


def short(purpose: str) -> str:
    """The first clause of the purpose of a recipe, without the numbers of papers."""
    return re.sub(r" \(arXiv [\d.]+\)", "", purpose).partition(": ")[0].rstrip(".:")


def _processes(recipe: str, file: str) -> str:
    ways = rf"--num_gpus (\d+) launch/\w+\.py launch/recipes/{file}", rf"megaunigame train {Path(file).stem} --ranks (\d+)"
    found = next((found for way in ways if (found := re.search(way, recipe))), None)
    if not file.startswith("tiny_"):
        return f"{found[1]} GPUs" if found else "GPUs"
    return f"CPU, {found[1]} processes" if found else "CPU"


def _plans(block: str) -> list[tuple[str, str, str]]:
    """(hardware, memory of a GPU, seconds of a step) of each configuration in a block of plans."""
    verdict = r"#   (\d+) x (\d+) (\S+), \S+ parameters trained; (fits|does not fit): (\S+) GiB of (\d+)"
    found = re.findall(verdict + r"(?:.|\n)*?#   (\S+ to \S+) s a step", block.replace("\n#     ", " "))
    remark = {"fits": "", "does not fit": ": does not fit"}
    return [
        (f"{nodes} x {gpus} {kind}", f"{size} GiB of {limit}{remark[fit]}", seconds)
        for nodes, gpus, kind, fit, size, limit, seconds in found
    ]


def commands_table() -> str:
    rows = []
    for name in command_names():
        docstring = ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"))) or ""
        script = f"`launch/{name}.py`" if (REPOSITORY / "launch" / f"{name}.py").exists() else ""
        rows.append((f"`{typed_name(name)}`", docstring.partition("\n")[0], script))
    return _table(("`megaunigame ...`", "what it does", "in a clone"), rows)


def families_table() -> str:
    names = _families()
    columns = ("family", "`model.family`", "sizes, parameters", "pictures are seen as", "and drawn as", "UniGame's paths")
    rows = (_family(name, find("models", name, UnifiedModel)) for name in names)
    return _table((*columns, "read by transformers", "license of the weights"), rows)


def short_families_table() -> str:
    """That of the README: what a reader chooses a family by."""
    columns = (
        "family",
        "parameters",
        "checkpoints that are read",
        "least memory of a GPU, planned",
        "compared with",
        "license of the weights",
    )
    least = _least_memory()
    rows = (
        (
            f"[{_title(name)}](docs/models/{name}.md)",
            ", ".join(dict.fromkeys(sizes(name, find("models", name, UnifiedModel)))),
            _line(name, "Reads"),
            least.get(name, NOT_PLANNED),
            _line(name, "Compared with"),
            _line(name, "License"),
        )
        for name in _families()
    )
    return _table(columns, rows)


def _families() -> list[str]:
    return sorted(available("models", UnifiedModel), key=_title)


def sizes(name: str, family: type[UnifiedModel]) -> Iterable[str]:
    return (f"{TOTALS[name, size] / 1e9:.1f} B" for size in family.sizes if size != "tiny")


def _least_memory() -> dict[str, str]:
    """Family -> the plan of its recipes that needs the least memory of a GPU."""
    found: dict[str, tuple[float, str]] = {}
    for recipe in RECIPES.glob("*.yaml"):
        if not BLOCK.search(recipe.read_text(encoding="utf-8")):
            continue
        header = Header(recipe)
        for configuration, (hardware, memory, _) in zip(header.configurations, _plans(header.block), strict=True):
            family, size = configuration.recipe.model.family, float(memory.split()[0])
            trained = MADE[configuration.recipe.model.train]
            this = size, f"{size:.0f} GiB ({trained}, {hardware})"
            found[family] = min(found.get(family, this), this)
    return {family: text for family, (_, text) in found.items()}


def _family(name: str, family: type[UnifiedModel]) -> tuple[str, ...]:
    names = (f"`{size}` " for size in family.sizes if size != "tiny")
    paths = (path for path in PATHS if not lacks(family, path))
    return (
        f"[{_title(name)}]({name}.md)",
        f"`{name}`",
        ", ".join(map(str.__add__, names, sizes(name, family))),
        _seen(family),
        _drawn(family),
        ", ".join(paths),
        "yes" if family.in_transformers else "no",
        _line(name, "License"),
    )


def _seen(family: type[UnifiedModel]) -> str:
    if family.reads_target:
        return "features of the encoder that also reads drawn pictures"
    return "codes" if family.reads_codes else "features of a vision tower"


def _drawn(family: type[UnifiedModel]) -> str:
    if not family.has_codes:
        return "latents, by a flow" if family.predicts_whole else "latents, many at a time, by a diffusion"
    return "codes, one after another" if family.predicts_whole else "codes, many at a time"


def _title(name: str) -> str:
    title = re.search(r"^# (.+)$", _page(name), re.MULTILINE)
    assert title, f"docs/models/{name}.md needs a title"
    return title[1]


def _line(name: str, label: str) -> str:
    """The first clause of the line `**label**: ...` of a family's page."""
    clause = re.search(rf"^\*\*{label}\*\*: (.+?)(?:;|\.$|\. )", _page(name), re.MULTILINE)
    assert clause, f"docs/models/{name}.md needs a line `**{label}**: ...`"
    return clause[1]


def _page(name: str) -> str:
    return (FAMILIES / f"{name}.md").read_text(encoding="utf-8")


def _table(columns: Iterable[str], rows: Iterable[tuple[str, ...]]) -> str:
    columns = tuple(columns)
    lines = [columns, ("---",) * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
