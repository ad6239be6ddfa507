"""docs/registry.md names every table, column and limit there is."""

from __future__ import annotations

from pathlib import Path

from ballpoint.registry import registry
from ballpoint.registry.schema import metadata

_PAGE = (Path(__file__).parents[2] / "docs" / "registry.md").read_text()


def test_every_table_has_its_columns_explained() -> None:
    for table in metadata.tables.values():
        _, found, section = _PAGE.partition(f"**{table.name}**")
        assert found, table.name
        rows = section.partition("\n**")[0].splitlines()
        explained = [row.split("`")[1] for row in rows if row.startswith("| `")]
        assert explained == [column.name for column in table.columns]


def test_the_limits_are_stated() -> None:
    for limit in (registry._EVENTS_KEPT, registry._EVENTS_KEPT_OF_ALL):
        assert f"{limit:,}" in _PAGE
