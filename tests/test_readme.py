"""The README may not fall behind the code."""

import re
from pathlib import Path

import pytest
from pydantic import SecretStr

from flows.__main__ import build_parser
from jelou_rotation.manifest import COLUMNS, load
from jelou_rotation.outcomes import Evidence, Outcome
from jelou_rotation.settings import Settings

README = (Path(__file__).parent.parent / "README.md").read_text()


def shown(default):
    match default:
        case None:
            return "unset"
        case bool():
            return f"`{str(default).lower()}`"
        case float():
            return f"`{default:g}`"
        case SecretStr():
            return f"`{default.get_secret_value()}`"
    return f"`{default}`"


def settings_rows():
    return [
        f"| `JELOU_{name.upper()}` | {shown(field.default)} | {field.description} |"
        for name, field in Settings.model_fields.items()
    ]


@pytest.mark.parametrize("row", settings_rows())
def test_the_readme_lists_every_setting_with_its_default(row):
    assert row in README


def test_the_readme_lists_no_setting_that_is_gone():
    known = {f"JELOU_{name.upper()}" for name in Settings.model_fields} | {"JELOU_SECRETS_DIR"}
    assert set(re.findall(r"JELOU_[A-Z_]+", README)) == known


@pytest.mark.parametrize("word", [*Outcome, *Evidence, *COLUMNS])
def test_the_readme_explains_every_outcome_evidence_and_key(word):
    assert re.search(rf"^\| `{word}` \|", README, re.MULTILINE)


def test_every_command_is_documented():
    (commands,) = (action for action in build_parser()._actions if action.choices)
    for command in commands.choices:
        assert f"jelou-rotation {command}" in README


def test_the_manifest_on_the_page_for_the_night_loads():
    page = (Path(__file__).parent.parent / "deployments/credentials.md").read_text()
    (row,) = load(re.search(r"```yaml\n(.*?)```", page, re.DOTALL)[1]).rows
    assert row.generates


@pytest.mark.parametrize("outcome", [Outcome.BLOCKED, Outcome.DRIFTED, Outcome.FAILED, Outcome.UNKNOWN])
def test_the_page_for_the_night_says_what_to_do_about_every_outcome_of_a_credential(outcome):
    page = (Path(__file__).parent.parent / "deployments/credentials.md").read_text()
    assert re.search(rf"^\| `{outcome}`", page, re.MULTILINE)


def test_the_readmes_manifests_load():
    blocks = dict(re.findall(r"```(yaml|csv)\n(.*?)```", README, re.DOTALL))
    assert len(load(blocks["yaml"]).rows) == 3
    assert load(blocks["csv"]).rows == load(blocks["yaml"]).select(["acme-mx"]).rows
