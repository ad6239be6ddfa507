"""Documents that are made from the code, and the check that they still say what the code says.

`python -m tests.documents` fails where one is stale; with --write it writes them.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import click
import msgspec

from ballpoint.cli.main import _COMMANDS, cli
from ballpoint.core.config import NodeConfig

DOCS = Path(__file__).parent.parent / "docs"


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


PAGES = {"commands.md": commands_page, "configuration.md": configuration_page}


def stale() -> list[str]:
    """Names of pages that do not say what the code says."""
    return [name for name, page in PAGES.items() if not (DOCS / name).exists() or (DOCS / name).read_text() != page()]


def main() -> int:
    if "--write" in sys.argv:
        for name, page in PAGES.items():
            (DOCS / name).write_text(page())
        return 0
    old = stale()
    if old:
        sys.stderr.write(f"stale: {', '.join(old)}; run ./dev docs\n")
    return bool(old)


if __name__ == "__main__":
    sys.exit(main())
