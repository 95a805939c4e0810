import pytest

from megaunigame.monitoring.model_card import CARD, license_of


@pytest.mark.parametrize(
    "card", ["---\nlicense: [a\n---\n", "---\n- a\n---\n", "---\nlicense: !!python/name:os.system ''\n---\n"]
)
def test_metadata_that_cannot_be_read_is_no_license(tmp_path, card, caplog):
    (tmp_path / CARD).write_text(card)
    assert license_of(tmp_path) == {} and "cannot be read" in caplog.text


def test_a_license_is_read_and_nothing_else(tmp_path):
    (tmp_path / CARD).write_text("---\nlicense: mit\nlicense_name: 7\ntags: [x]\n---\n")
    assert license_of(tmp_path) == {"license": "mit"}


def test_several_licenses_are_kept(tmp_path):
    (tmp_path / CARD).write_text("---\nlicense: [apache-2.0, cc-by-4.0]\n---\n")
    assert license_of(tmp_path) == {"license": ["apache-2.0", "cc-by-4.0"]}


@pytest.mark.parametrize("value", ["7", "[]", "[a, 7]", "{a: b}"])
def test_a_license_that_is_no_text_is_said(tmp_path, value, caplog):
    (tmp_path / CARD).write_text(f"---\nlicense: {value}\n---\n")
    assert license_of(tmp_path) == {} and "is not a text: name the license" in caplog.text
