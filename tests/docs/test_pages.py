"""Pages that are made from the source are what the source says today; hand-written ones name settings and errors that exist."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

import megaunigame
from megaunigame.config import load_recipe
from megaunigame.errors import ConfigError
from megaunigame.reference.parts import Part, all_parts, all_settings
from megaunigame.reference.settings import NAME, REQUIRED, Setting, sections
from megaunigame.settings import at_least, half_open, one_of
from tests.docs.tables import short
from tests.docs.write_pages import pages

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = REPOSITORY / "docs"
AGAIN = "Type: python -m tests.docs.write_pages"
OF_A_LOADED_MODEL = {"model.network"}
"""Python, not settings."""
ELLIPSIS = "…"
"""In an error on docs/troubleshooting.md: what differs."""


@pytest.fixture(scope="module")
def parts() -> list[Part]:
    return all_parts()


@pytest.fixture(scope="module")
def known(parts) -> re.Pattern[str]:
    """Full keys of all settings and their sections; entries of mappings too."""
    in_recipes = [part for part in parts if part.kind != "sweep"]
    chosen = {"evaluation.suites.NAME.suite", "objectives.unigame.adversary.kind"}  # which settings the others are
    keys = chosen | {section.path for part in in_recipes for section in part.sections}
    for _, section, setting in all_settings(in_recipes):
        key = section.full_key(setting)
        keys |= {key, f"{key}.{NAME}"} if setting.type.startswith("mapping of") else {key}
    return re.compile("|".join(re.escape(key).replace(NAME, r"[\w-]+") for key in sorted(keys - {""})))


@pytest.fixture(scope="module")
def written() -> dict[Path, str]:
    return pages()


def test_written_pages_are_those_of_today(written):
    for page, text in written.items():
        assert page.read_text(encoding="utf-8") == text, f"{page.relative_to(REPOSITORY)} is not what the source says. {AGAIN}"


def test_the_page_of_python_has_signatures_and_errors(written):
    page = written[DOCS / "api.md"]
    assert (
        "```python\nmegaunigame.train(recipe: str | os.PathLike[str], *, ranks: int | None = None, **settings: Any) -> Path"
        in page
    )
    assert "| `CapacityError` | `ConfigError` | A run does not fit" in page


def test_every_setting_says_what_it_means(parts):
    found = [f"{part.kind} {part.name} {section.full_key(s)}" for part, section, s in all_settings(parts) if not s.meaning]
    assert found == [], "Write a string below the field."


@dataclass
class Inner:
    """Of an inner."""

    share: float | None = half_open(0, 1, None)
    """A share."""


@dataclass
class Base:
    rows: dict[str, int] = at_least(3, dict)
    """Rows
    by name."""
    kind: str = one_of(["a", "b"], "a")
    """Base's kind."""


@dataclass
class Outer(Base):
    kind: str = one_of(["a", "b"], "b")
    """Own kind."""
    betas: list[float] = half_open(0, 1, lambda: [0.5, 0.25])
    text: str = ""
    path: str = "???"
    inner: Inner = field(default_factory=Inner)
    maybe: Inner | None = None
    """Maybe one."""
    many: dict[str, Inner] = field(default_factory=dict)
    """Many."""


def test_settings_are_read_from_dataclasses():
    outer, *inner = sections(Outer, "top")
    assert outer.path == "top" and outer.meaning == ""
    assert outer.settings == (
        Setting("rows", "mapping of int", "at least 3", "{}", "Rows\nby name."),
        Setting("kind", "text", ("a", "b"), "b", "Own kind."),
        Setting("betas", "list of float", "in [0, 1)", "[0.5, 0.25]", ""),
        Setting("text", "text", "", '""', ""),
        Setting("path", "text", "", REQUIRED, ""),
        Setting("maybe", "mapping or null", "", "null", "Maybe one."),
        Setting("many", "mapping", "", "{}", "Many."),
    )
    assert [section.path for section in inner] == ["top.inner", "top.maybe", f"top.many.{NAME}"]
    assert {section.meaning for section in inner} == {"Of an inner."}
    assert inner[0].settings == (Setting("share", "float or null", "in [0, 1)", "null", "A share."),)
    assert inner[0].settings[0].values == "float or null, in [0, 1)" and outer.settings[1].values == "text: a, b"


def test_tables_say_what_recipes_and_families_say(written):
    table = written[DOCS / "recipes.md"]
    assert len(re.findall(r"^\| `", table, re.MULTILINE)) == len(list((REPOSITORY / "launch" / "recipes").glob("*.yaml")))
    assert re.search(r"^\| `emu3_8b_aia` \| .* \| full \| 2 x 8 h100-80g \| \S+ GiB of 79 \|", table, re.MULTILINE)
    assert re.search(r"^\| `tiny_sft` \| .* \| LoRA \| CPU, 2 processes \| not planned \|", table, re.MULTILINE)
    families = written[DOCS / "models" / "README.md"]
    assert "| `janus` | `1b` 2.1 B, `7b` 7.4 B | features of a vision tower | codes, one after another |" in families
    assert "| latents, by a flow |" in families and "| codes, many at a time |" in families


def test_the_purpose_of_a_recipe_is_short():
    assert short("A (arXiv 2509.07295) on B-1.5: both tasks trained.") == "A on B-1.5"
    assert short("A sentence, on two lines.") == "A sentence, on two lines"


def named_settings(text: str) -> set[str]:
    """What stands in code of a page and looks like a key of a recipe: with a dot, its first part a block of it."""
    blocks = "model|data|loader|objectives|weights|batch|optimizer|divergence|schedule|engine|checkpoint|monitor|evaluation"
    found = re.findall(rf"(?<![\w/.-])((?:{blocks})\.[a-z]\w*(?:\.\w+)*)(?=[=`, )']|$)", text, re.MULTILINE)
    return {key for key in found if not key.endswith((".safetensors", ".py"))} - OF_A_LOADED_MODEL


@pytest.mark.parametrize("page", [*sorted(DOCS.rglob("*.md")), REPOSITORY / "README.md"], ids=lambda page: page.name)
def test_settings_that_are_named_exist(page, known):
    text = re.sub(r"^```python\n.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    code = re.findall(r"^```.*?^```|`[^`\n]+`", text, re.DOTALL | re.MULTILINE)
    named = {key for piece in code for key in named_settings(piece)}
    assert sorted(key for key in named if not known.fullmatch(key)) == []


def test_the_check_of_settings_sees_what_is_wrong(known):
    assert named_settings("`optimizer.lr=1e-5 model.pth=x`") == {"optimizer.lr", "model.pth"}
    assert known.fullmatch("data.train.cache.folder") and known.fullmatch("objectives.unigame.buffer")
    assert not known.fullmatch("model.pth") and not known.fullmatch("data.train.cache.foldr")


def test_names_of_other_trainers_lead_to_settings(known):
    rows = re.findall(r"^\| ([^|]+) \| ([^|]*) \| [^|]*\|$", (DOCS / "other_trainers.md").read_text(), re.MULTILINE)
    here = {key for _, cell in rows for key in re.findall(r"`([\w.]+)`", cell)}
    assert len(here) > 40 and sorted(key for key in here if not known.fullmatch(key)) == []


def texts_in(folder: Path) -> list[str]:
    """All strings of the code, f-strings piece by piece, with single blanks."""
    trees = (ast.parse(file.read_text(encoding="utf-8")) for file in sorted(folder.rglob("*.py")))
    found = (node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return [" ".join(text.split()) for text in found if isinstance(text, str)]


def errors_on_the_page() -> list[str]:
    return [
        line
        for block in re.findall(r"^```output\n(.*?)^```", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE | re.DOTALL)
        for line in block.splitlines()
    ]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return texts_in(REPOSITORY / "megaunigame")


ERRORS = errors_on_the_page()


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error[:40])
def test_errors_on_the_page_are_those_of_the_code(error, texts):
    pieces = [piece.strip() for piece in error.split(ELLIPSIS)]
    long = [piece for piece in pieces if len(piece) >= 10]
    assert len(ERRORS) >= 10 and long
    missing = [piece for piece in long if not any(piece in text for text in texts)]
    assert missing == [] or says(error, str(error_of_a_wrong_key())), f"Not in the code: {missing}"


def says(pattern: str, message: str) -> bool:
    return bool(re.fullmatch(".+".join(map(re.escape, pattern.split(ELLIPSIS))), message))


def error_of_a_wrong_key() -> ConfigError:
    with pytest.raises(ConfigError) as raised:
        load_recipe(str(REPOSITORY / "launch" / "recipes" / "tiny_sft.yaml"), ["schedule.step=3"])
    return raised.value


def test_the_error_of_a_wrong_key_is_on_the_page():
    message = str(error_of_a_wrong_key())
    assert any(says(error, message) for error in ERRORS), message


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    license_line = f'\nlicense = "{citation["license"]}"\n'
    assert citation["version"] == megaunigame.__version__
    assert license_line in (REPOSITORY / "pyproject.toml").read_text()
    assert all(reference["authors"] and reference["url"] for reference in citation["references"])


@pytest.mark.parametrize("form", sorted((REPOSITORY / ".github" / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda form: form.name)
def test_issue_forms_have_what_their_form_needs(form):
    content = yaml.safe_load(form.read_text())
    if form.name == "config.yml":
        assert content.keys() == {"blank_issues_enabled"}
        return
    assert content["name"] and content["description"] and content["body"]
    ids = [part["id"] for part in content["body"] if part["type"] != "markdown"]
    assert len(ids) == len(set(ids)) > 0
    for part in content["body"]:
        assert part["type"] in {"markdown", "textarea", "input", "dropdown", "checkboxes"}
        assert part["attributes"].get("label" if part["type"] != "markdown" else "value")
