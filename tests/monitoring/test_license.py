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
