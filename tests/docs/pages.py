"""What the pages of docs/ show, read so that it can be run: CONTRIBUTING.md says how such a page is written."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

# Of blocks as they stand: `console` is run command by command, a program whole; `output` is what the program before it
# prints.
PROGRAMS = ("python",)
RUN = ("console", *PROGRAMS, "output")

_FENCE = re.compile(r" *```(.*)")
_REMARK = re.compile(r"<!-- (not run|run by|file): (\S.*) -->")
_PROMPT = re.compile(r"(?:(?P<sprite>[a-z][a-z0-9-]*))?\$ (?P<command>.*)")
_MOMENT = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:\.\d+)?Z?")


@dataclass(frozen=True)
class Block:
    """A fenced block: its first line's number in the page, the word of its fence, and the remark above it."""

    line: int
    kind: str
    text: str
    remark: tuple[str, str] | None


@dataclass(frozen=True)
class Step:
    """A command or a program.

    Attributes:
        line: where it stands in the page.
        kind: `console`, the kind of a program, or `file` for a file that is written.
        text: the command, the program, or the file.
        sprite: where a command runs: in that sprite, or where the client is.
        shown: what the page says that it prints, or None.
        name: of the file.
    """

    line: int
    kind: str
    text: str
    sprite: str | None = None
    shown: str | None = None
    name: str = ""


def blocks(text: str) -> list[Block]:
    """All fenced blocks of a page. An indented block, or a fence that does not end, is an error."""
    found: list[Block] = []
    begun: tuple[int, str, tuple[str, str] | None] | None = None
    inside: list[str] = []
    last = ""
    for number, line in enumerate(text.splitlines(), 1):
        fence = _FENCE.fullmatch(line)
        if begun is not None:
            if fence is None:
                inside.append(line)
                continue
            found.append(Block(*begun[:2], "".join(f"{each}\n" for each in inside), begun[2]))
            begun = None
        elif fence is not None:
            remark = _REMARK.fullmatch(last)
            begun, inside = (number, fence[1], (remark[1], remark[2]) if remark else None), []
        elif line.startswith("    ") and not last:
            raise ValueError(f"line {number}: an indented block; fence it, so that it says what it is")
        last = line
    if begun is not None:
        raise ValueError(f"line {begun[0]}: a block that does not end")
    return found


def unaccounted(text: str, root: Path) -> list[str]:
    """What of a page is neither run nor says why not: "line N: what"."""
    wrong = []
    for block in blocks(text):
        how, what = block.remark or ("", "")
        if not how and block.kind not in RUN:
            wrong.append(f"line {block.line}: a block of kind {block.kind!r} is not run, and nothing says why")
        if how == "run by" and not (root / what).is_file():
            wrong.append(f"line {block.line}: {what} is not there")
    return wrong


def steps(text: str) -> list[Step]:
    """What of a page is run, in its order."""
    found: list[Step] = []
    for block in blocks(text):
        how, what = block.remark or ("", "")
        if how == "file":
            found.append(Step(block.line, "file", block.text, name=what))
        elif how:
            continue
        elif block.kind == "console":
            found += _commands(block)
        elif block.kind in PROGRAMS:
            found.append(Step(block.line, block.kind, block.text))
        elif block.kind == "output":
            last = found.pop() if found and found[-1].kind in PROGRAMS else None
            if last is None or last.shown is not None:
                raise ValueError(f"line {block.line}: output of nothing")
            found.append(Step(last.line, last.kind, last.text, shown=block.text))
    return found


def _commands(block: Block) -> list[Step]:
    found: list[Step] = []
    for number, line in enumerate(block.text.splitlines(), block.line + 1):
        prompt = _PROMPT.fullmatch(line)
        if prompt is not None:
            found.append(Step(number, "console", prompt["command"], prompt["sprite"]))
            continue
        if not found:
            raise ValueError(f"line {number}: no command comes before this")
        last = found.pop()
        if last.shown is None and line.startswith("> "):
            found.append(Step(last.line, last.kind, f"{last.text}\n{line[2:]}", last.sprite))
        else:
            found.append(Step(last.line, last.kind, last.text, last.sprite, f"{last.shown or ''}{line}\n"))
    return found


def says(shown: str, printed: str) -> bool:
    """Whether a page shows what was printed.

    `...` stands for anything within a line, and alone in one for any lines; a moment for any moment; blanks for blanks,
    and none at the end of a line. Empty lines at the end make no difference.
    """
    pattern = "".join(
        r"(?:.*\n)*" if line.strip() == "..." else _line_pattern(line) + r"[ \t]*\n"
        for line in shown.rstrip("\n").splitlines()
    )
    return re.fullmatch(pattern, f"{text}\n" if (text := printed.rstrip("\n")) else "") is not None


def _line_pattern(line: str) -> str:
    parts = [_literal(part) for part in line.rstrip().split("...")]
    return ".*".join(parts)


def _literal(text: str) -> str:
    pattern, end = "", 0
    for moment in _MOMENT.finditer(text):
        pattern += _blanks(text[end : moment.start()]) + _MOMENT.pattern
        end = moment.end()
    return pattern + _blanks(text[end:])


def _blanks(text: str) -> str:
    return r"[ \t]+".join(re.escape(part) for part in re.split(r"[ \t]+", text))
