"""Lists on a terminal or in a pipe: one line for each thing, columns that two spaces part."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import click


def show(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print `rows` below `heading`, which has a word for each column. An empty cell is a `-`, so that awk finds all."""
    lines = [tuple(heading), *(tuple(cell or "-" for cell in row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heading))]
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def facts(of: Mapping[str, str]) -> None:
    """Print what is known of one thing, a line for each word. What is empty is a `-`."""
    width = max(map(len, of))
    for word, value in of.items():
        click.echo(f"{word.ljust(width)}  {value or '-'}")


def printable(text: str) -> str:
    """Somebody else's text, such as a file's name, without what would do more to a terminal than be seen."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def size(count: int) -> str:
    """Bytes, as people read them."""
    if count < 1024:
        return f"{count} B"
    value = count / 1024
    for unit in ("KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def moment(text: str) -> str:
    """A time of the API or of a record, as people read it: UTC, to the second."""
    return text[:19].replace("T", " ")
