"""The declarations of the config's fields, and what is made from them."""

import subprocess
import sys
from pathlib import Path

import pytest

from dctps_jax.cli.configuration import page
from dctps_jax.config import check_value
from dctps_jax.defaults import FIELDS, get_config
from dctps_jax.field import flat_fields

REPO = Path(__file__).parents[1]


def test_the_config_holds_every_field_at_its_default():
    assert dict(flat_fields(get_config())) == {name: field.default for name, field in FIELDS.items()}


@pytest.mark.parametrize("name", FIELDS)
def test_declaration_is_complete(name):
    field = FIELDS[name]
    check_value(name, field.default)
    assert field.help.endswith(".") and "\n" not in field.help and "|" not in field.help


def test_no_offset_can_be_set_where_a_field_has_a_name():
    config = get_config()
    config.model.offset = None
    config.model.offset = "dct"


def test_the_page_is_current():
    assert (REPO / "docs" / "configuration.md").read_text() == page(), "run the command in the page's first paragraph"


def test_the_page_is_what_the_command_in_it_prints():
    assert "`python -m dctps_jax.cli.configuration > docs/configuration.md`" in page()
    command = [sys.executable, "-m", "dctps_jax.cli.configuration"]
    assert subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True).stdout == page()


def test_the_page_has_every_field_with_its_names():
    rows = {line.split("`")[1]: line for line in page().splitlines() if line.startswith("| `")}
    assert rows.keys() == FIELDS.keys()
    for name, field in FIELDS.items():
        assert field.help in rows[name] and ("| yes |" in rows[name]) == field.resume
        assert all(f"`{choice or repr('')}`" in rows[name] for choice in field.choices)
