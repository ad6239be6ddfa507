"""Documents that are made from the code, and the check that they still say what the code says.

`python -m tests.documents` fails where one is stale, names a test or a file that is not there, or has a row of what
works in a sprite that no test proves; with --write it writes those that are made, and the README's tour.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from pathlib import Path

import click
import msgspec

from ballpoint.cli.main import _COMMANDS, cli
from ballpoint.core.config import NodeConfig
from tests.inside import test_works

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
README = ROOT / "README.md"
TOUR = ROOT / "examples" / "tour.sh"
_TOUR_BEGINS, _TOUR_ENDS = "<!-- tour: written by ./dev docs from examples/tour.sh -->\n", "<!-- tour ends -->\n"
# A test as documents name it: a directory, a file, or a function of one; with `*` where there are several.
TEST = re.compile(r"`(tests/[\w/.*-]*)(?:::(\w+))?")

# A link to another file of the repository, without the place in it.
LINK = re.compile(r"\]\((?![a-z]+:)([^)#\s]+)")


def commands_page() -> str:
    """docs/commands.md: every command with its options, as --help says."""
    parts = ["# Commands\n", "Written by `./dev docs` from the command line's own help.\n"]
    context = click.Context(cli, info_name="ballpoint")
    parts.append(_help(cli, context))
    for name in sorted(_COMMANDS):
        command = cli.get_command(context, name)
        assert command is not None
        parts.append(_section(name, command, context))
        if isinstance(command, click.Group):
            inner = click.Context(command, info_name=name, parent=context)
            parts += [_section(f"{name} {each}", command.commands[each], inner) for each in sorted(command.commands)]
    return "\n".join(parts)


def _section(title: str, command: click.Command, parent: click.Context) -> str:
    return f"## ballpoint {title}\n\n" + _help(
        command, click.Context(command, info_name=title.split()[-1], parent=parent)
    )


def _help(command: click.Command, context: click.Context) -> str:
    context.max_content_width = context.terminal_width = 100
    return f"```\n{command.get_help(context)}\n```\n"


def configuration_page() -> str:
    """docs/configuration.md: every key of the node's configuration with its default."""
    documentation = inspect.getdoc(NodeConfig) or ""
    described: dict[str, str] = {}
    last: list[str] = []
    for line in documentation.partition("Attributes:\n")[2].splitlines():
        names, colon, text = line.strip().partition(": ")
        if colon and line.startswith("    ") and not line.startswith("        "):
            last = names.split(", ")
            described.update(dict.fromkeys(last, text))
        else:
            for name in last:
                described[name] += f" {line.strip()}"
    lines = [
        "# Configuration of a node",
        "",
        "Written by `./dev docs`. `ballpoint serve --config FILE.toml` reads these keys; flags of the same name win.",
        "",
        "| key | default | meaning |",
        "|---|---|---|",
    ]
    for field in msgspec.structs.fields(NodeConfig):
        lines.append(f"| `{field.name}` | `{field.default}` | {described[field.name]} |")
    return "\n".join(lines) + "\n"


def readme() -> str:
    """README.md with the commands of examples/tour.sh, which are all that comes after its first paragraph."""
    before, _, rest = README.read_text().partition(_TOUR_BEGINS)
    _, ends, after = rest.partition(_TOUR_ENDS)
    assert ends, "the README has no place for the tour"
    commands = TOUR.read_text().partition("\n\n")[2]
    return f"{before}{_TOUR_BEGINS}<!-- run by: tests/node/test_tour.py -->\n```sh\n{commands}```\n{_TOUR_ENDS}{after}"


PAGES = {DOCS / "commands.md": commands_page, DOCS / "configuration.md": configuration_page, README: readme}


def stale() -> list[str]:
    """Names of pages that do not say what the code says."""
    return [path.name for path, page in PAGES.items() if not path.exists() or path.read_text() != page()]


def absent_tests() -> list[str]:
    """Tests that a page names and that are not there: "page: test"."""
    found = []
    for page in sorted([README, ROOT / "CONTRIBUTING.md", *DOCS.glob("*.md")]):
        for path, function in TEST.findall(page.read_text()):
            files = list(ROOT.glob(path))
            if not files or (function and function not in _functions(files[0])):
                found.append(f"{page.name}: {path}{function and f'::{function}'}")
    return found


def broken_links() -> list[str]:
    """Links of pages to files that are not there: "page: link"."""
    found = []
    for page in sorted([README, ROOT / "CONTRIBUTING.md", *DOCS.glob("*.md")]):
        for link in LINK.findall(page.read_text()):
            if not (page.parent / link).exists():
                found.append(f"{page.name}: {link}")
    return found


def _functions(file: Path) -> set[str]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, kinds)}


def promises_without_proof() -> list[str]:
    """Rows of the specification that name neither a test nor a command, and rows of what works that have no case."""
    rows = [line.strip("| ").split(" | ") for line in (DOCS / "specification.md").read_text().splitlines()]
    found = [row[0] for row in rows if len(row) > 1 and set(row[0]) != {"-"} and "`" not in row[1]][1:]
    return [*found, *test_works.unbound()]


def main() -> int:
    if "--write" in sys.argv:
        for path, page in PAGES.items():
            path.write_text(page())
        return 0
    wrong = [
        *(f"{page} is stale; run ./dev docs" for page in stale()),
        *(f"{each} is not there" for each in [*absent_tests(), *broken_links()]),
        *(f"no test proves: {each}" for each in promises_without_proof()),
    ]
    sys.stderr.writelines(f"{each}\n" for each in wrong)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
