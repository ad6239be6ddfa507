"""file list, push, pull, edit."""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path

import click

from ballpoint.cli import columns
from ballpoint.cli.client import transfer
from ballpoint.cli.client.http import api, sprite_name
from ballpoint.cli.client.progress import transferring
from ballpoint.cli.client.remote_files import RemoteFiles
from ballpoint.core.errors import ConflictError, InvalidError

# What stands before the first colon, where that can be a sprite's name. ./a:b is a path in any case, as with scp(1).
_NAMED = re.compile(r"([a-z0-9](?:[a-z0-9-]{0,46}[a-z0-9])?):(.*)", re.DOTALL)
_FILE_MODE = 0o644

_recursive = click.option("-r", "--recursive", is_flag=True, help="Directories, too, with all that is in them.")
_skip_others = click.option(
    "--skip-others", is_flag=True, help="Leave out links and what else is neither file nor directory."
)


@click.group()
def file() -> None:
    """Files of a sprite. A path without a leading slash begins in the home of its user."""


@file.command("list")
@click.argument("path", metavar="[SPRITE:]PATH", default=".")
@click.option("-r", "--recursive", is_flag=True, help="What is in directories, too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def list_(ctx: click.Context, path: str, recursive: bool, as_json: bool) -> None:
    """List a directory, or one file."""
    remote, where = _remote(ctx, path)
    found = remote.listing(where, recursive=recursive)
    if as_json:
        click.echo(json.dumps(found["entries"], indent=2))
    else:
        columns.show(
            ("MODE", "SIZE", "MODIFIED", "TYPE", "PATH"),
            [
                (
                    each.get("mode", ""),
                    str(each.get("size", "")),
                    columns.moment(each.get("modTime", "")),
                    each["type"],
                    columns.printable(each["path"]),
                )
                for each in found["entries"]
            ],
        )
    if found.get("truncated"):
        click.echo(f"ballpoint: there are {found['count']}, too many to list all", err=True)
    for each in found.get("errors", ()):
        click.echo(f"ballpoint: {columns.printable(each.get('path', ''))}: {each.get('error', each)}", err=True)


@file.command()
@click.argument("sources", metavar="LOCAL...", nargs=-1, required=True)
@click.argument("dest", metavar="[SPRITE:]REMOTE")
@_recursive
@_skip_others
@click.pass_context
def push(ctx: click.Context, sources: tuple[str, ...], dest: str, recursive: bool, skip_others: bool) -> None:
    """Copy files into a sprite, with their modes. `-` is standard input.

    They come to be in REMOTE where that is a directory or ends in a slash, else at it. Whatever happens, a file there
    is the whole new one or the one that was there before.
    """
    remote, where = _remote(ctx, dest)
    plan = transfer.plan_push(remote, sources, where, recursive=recursive)
    plan.check(skip=skip_others)
    with transferring(plan.size) as report:
        transfer.push(remote, plan, report)


@file.command()
@click.argument("source", metavar="[SPRITE:]REMOTE")
@click.argument("dest", metavar="[LOCAL]", default=".")
@_recursive
@_skip_others
@click.pass_context
def pull(ctx: click.Context, source: str, dest: str, recursive: bool, skip_others: bool) -> None:
    """Copy a file out of a sprite, with its mode. `-` is standard output."""
    remote, where = _remote(ctx, source)
    plan = transfer.plan_pull(remote, where, dest, recursive=recursive)
    plan.check(skip=skip_others)
    if dest == transfer.STDIO:
        transfer.pull(remote, plan, lambda _, __: None)
        return
    with transferring(plan.size) as report:
        transfer.pull(remote, plan, report)


@file.command()
@click.argument("path", metavar="[SPRITE:]REMOTE")
@click.pass_context
def edit(ctx: click.Context, path: str) -> None:
    """Change a sprite's file in the editor of VISUAL or EDITOR, on this machine. A new one may be made so, too."""
    remote, where = _remote(ctx, path)
    before = _content(remote, where)
    with tempfile.TemporaryDirectory(prefix="ballpoint-") as directory:
        draft = Path(directory, Path(where).name or "file")
        draft.write_bytes(before or b"")
        click.edit(filename=str(draft))
        after = draft.read_bytes()
        if after == (before or b""):
            click.echo(f"{where} stays as it is")
            return
        now = _content(remote, where)
        if now != before:
            fd, kept = tempfile.mkstemp(prefix="ballpoint-", suffix=f"-{draft.name}")
            with os.fdopen(fd, "wb") as stream:
                stream.write(after)
            raise ConflictError(f"{where} was changed by somebody else meanwhile", hint=f"your text is in {kept}")
    found = remote.find(where)
    remote.write(where, [after], int(found["mode"], 8) if found is not None else _FILE_MODE)
    click.echo(f"wrote {where}")


def _content(remote: RemoteFiles, path: str) -> bytes | None:
    """The bytes of a file, None where there is none."""
    found = remote.find(path)
    if found is None:
        return None
    if found["isDir"]:
        raise InvalidError(f"{path} is a directory", hint="name a file")
    with remote.read(path) as pieces:
        return b"".join(pieces)


def _remote(ctx: click.Context, text: str) -> tuple[RemoteFiles, str]:
    """A sprite's files and a path among them."""
    named = _NAMED.fullmatch(text)
    name, path = (named[1], named[2] or ".") if named is not None else (None, text)
    return RemoteFiles(api(ctx), sprite_name(ctx, name)), path
