"""docs/conversion.md lists every setting of the tables in the code."""

import pathlib

import pytest

from blip2_jax.convert.tables import (
    bert_settings,
    capfilt_settings,
    encoder_settings,
    instructblip_settings,
    llama,
    phi3,
)
from blip2_jax.convert.tables import huggingface_settings as settings

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "conversion.md"
TABLES = (
    settings.TABLES
    | llama.TABLES
    | phi3.TABLES
    | instructblip_settings.TABLES
    | capfilt_settings.TABLES
    | encoder_settings.TABLES
    | bert_settings.TABLES
)


def rows():
    """Return the cells of all tables of the page."""
    lines = PAGE.read_text().splitlines()
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in lines
        if line.startswith("| ")
    ]


def listed(text):
    return {part for index, part in enumerate(text.split("`")) if index % 2}


@pytest.mark.parametrize("title", TABLES)
def test_settings_of_a_class(title):
    table = TABLES[title]
    used, fixed = next(row[1:] for row in rows() if row[0] == title)
    assert listed(used) == set(table.used)
    assert listed(fixed) == set(table.fixed)
    reasons = {row[1]: listed(row[2]) for row in rows() if row[0] == title and row[2:]}
    for name, reason in table.without_effect.items():
        assert name in reasons[reason], (title, name)


def test_settings_of_every_class():
    reasons = {row[1]: listed(row[2]) for row in rows() if row[0] == "every class"}
    for reason, names in settings.COMMON.items():
        assert reasons[reason] == set(names)
    assert any(names == set(settings.COMMON_FIXED) for names in reasons.values())
