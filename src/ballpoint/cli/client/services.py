"""services: programs that a sprite keeps running (contract 2.5)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

import click

from ballpoint.cli import columns
from ballpoint.cli.client import complete
from ballpoint.cli.client.exec_command import parse_environment
from ballpoint.cli.client.http import Api, api, sprite_name, sprite_path
from ballpoint.core.errors import BallpointError, InvalidError, UnavailableError

# How long one answer of a log that is followed may be, and how many of its lines may be there again.
_FOLLOWED, _OVERLAP = "1h", "1000"
_name = click.argument("name", metavar="SERVICE", shell_complete=complete.services)
_duration = click.option(
    "--duration", metavar="DURATION", help="How long to show what it writes, such as 30s [5s].", default=None
)
_no_stream = click.option("--no-stream", is_flag=True, help="Show nothing of what it writes, and wait for nothing.")
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_ndjson = click.option("--json", "as_json", is_flag=True, help="Print NDJSON.")


@click.group()
def services() -> None:
    """Programs that a sprite keeps running."""


@services.command("list")
@_json
@click.pass_context
def list_(ctx: click.Context, as_json: bool) -> None:
    """List the services."""
    found = api(ctx).call("GET", _path(ctx))
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    columns.show(
        ("NAME", "STATUS", "PID", "HTTP PORT", "NEEDS", "COMMAND"),
        [
            (
                each["name"],
                str(_state(each).get("status") or ""),
                str(_state(each).get("pid") or ""),
                str(each.get("http_port") or ""),
                ",".join(each.get("needs") or ()),
                columns.printable(" ".join([each["cmd"], *(each.get("args") or ())])),
            )
            for each in found
        ],
    )


@services.command()
@_name
@_json
@click.pass_context
def get(ctx: click.Context, name: str, as_json: bool) -> None:
    """Show a service: what it is, and how it is."""
    found = api(ctx).call("GET", _path(ctx, name))
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    state = _state(found)
    shown = {"name": found["name"], "status": state.get("status"), "pid": state.get("pid")}
    shown |= {"started": state.get("started_at"), "restarts": state.get("restart_count")}
    if state.get("error"):
        shown["trouble"] = state["error"]
    if state.get("next_restart_at"):
        shown["next restart"] = state["next_restart_at"]
    shown |= {"command": json.dumps([found["cmd"], *(found.get("args") or ())]), "directory": found.get("dir")}
    shown |= {"http port": found.get("http_port"), "needs": ", ".join(found.get("needs") or ())}
    for key, value in (found.get("env") or {}).items():
        shown[f"env {key}"] = value
    columns.facts({word: "" if value is None else str(value) for word, value in shown.items()})


@services.command()
@click.argument("name", metavar="SERVICE")
@click.option("--cmd", required=True, help="The program.")
@click.option("--args", "arguments", metavar="A[,B]", multiple=True, help="Its arguments.")
@click.option("--env", "environment", multiple=True, metavar="K=V[,K=V]", help="Its variables.")
@click.option("--dir", "directory", help="Working directory.")
@click.option("--needs", multiple=True, metavar="SERVICE[,SERVICE]", help="Services that are started before.")
@click.option("--http-port", type=click.IntRange(1, 65535), help="Where it serves the sprite's URL.")
@_duration
@_no_stream
@_ndjson
@click.pass_context
def create(
    ctx: click.Context,
    name: str,
    cmd: str,
    arguments: tuple[str, ...],
    environment: tuple[str, ...],
    directory: str | None,
    needs: tuple[str, ...],
    http_port: int | None,
    duration: str | None,
    no_stream: bool,
    as_json: bool,
) -> None:
    """Have a service, started with the sprite and again when it ends. One of that name is replaced."""
    body: dict[str, Any] = {"cmd": cmd}
    if arguments:
        body["args"] = _words(arguments)
    if environment:
        body["env"] = parse_environment(environment)
    if needs:
        body["needs"] = _words(needs)
    if directory:
        body["dir"] = directory
    if http_port:
        body["http_port"] = http_port
    _follow(api(ctx), "PUT", _path(ctx, name), _for(duration, no_stream), as_json=as_json, quiet=no_stream, json=body)


@services.command()
@_name
@_duration
@_no_stream
@_ndjson
@click.pass_context
def start(ctx: click.Context, name: str, duration: str | None, no_stream: bool, as_json: bool) -> None:
    """Start a service."""
    _follow(api(ctx), "POST", _path(ctx, name, "/start"), _for(duration, no_stream), as_json=as_json, quiet=no_stream)


@services.command()
@_name
@_duration
@_no_stream
@_ndjson
@click.pass_context
def restart(ctx: click.Context, name: str, duration: str | None, no_stream: bool, as_json: bool) -> None:
    """Stop a service and start it again."""
    _follow(api(ctx), "POST", _path(ctx, name, "/restart"), _for(duration, no_stream), as_json=as_json, quiet=no_stream)


@services.command()
@_name
@click.option("--timeout", metavar="DURATION", help="After that it is killed [10s].")
@_ndjson
@click.pass_context
def stop(ctx: click.Context, name: str, timeout: str | None, as_json: bool) -> None:
    """Stop a service. It stays so, over restarts of its sprite, until it is started."""
    query = {"timeout": timeout} if timeout else {}
    _follow(api(ctx), "POST", _path(ctx, name, "/stop"), query, as_json=as_json, ends_well=True)


@services.command()
@_name
@click.argument("signal", metavar="SIGNAL")
@click.pass_context
def signal(ctx: click.Context, name: str, signal: str) -> None:
    """Send a service a signal, such as HUP."""
    api(ctx).call("POST", _path(ctx, "signal"), json={"name": name, "signal": signal})
    click.echo(f"sent {signal} to {name}")


@services.command()
@_name
@click.pass_context
def delete(ctx: click.Context, name: str) -> None:
    """Stop a service and forget it. Its log stays."""
    api(ctx).call("DELETE", _path(ctx, name))
    click.echo(f"deleted {name}")


@services.command()
@_name
@click.option("-n", "--lines", type=click.IntRange(min=0), help="Only the last of them.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what it writes from now on.")
@click.option("--duration", metavar="DURATION", help="Go on for so long.")
@_ndjson
@click.pass_context
def logs(ctx: click.Context, name: str, lines: int | None, follow: bool, duration: str | None, as_json: bool) -> None:
    """Show what a service wrote: each of its streams on its own."""
    if follow and duration:
        raise InvalidError("--follow has no end", hint="leave out --follow or --duration")
    node, path = api(ctx), _path(ctx, name, "/logs")
    query = {} if lines is None else {"lines": str(lines)}
    if duration or follow:
        query["duration"] = duration or _FOLLOWED
    seen = _Seen()
    _follow(node, "GET", path, query, as_json=as_json, ends_well=True, seen=seen)
    while follow:  # the contract knows no log without an end
        query = {"lines": _OVERLAP, "duration": _FOLLOWED}
        _follow(node, "GET", path, query, as_json=as_json, ends_well=True, seen=seen)


class _Seen:
    """Which lines of a log were shown, where the end of one answer is the beginning of the next."""

    def __init__(self) -> None:
        self._moment = -1
        self._then: list[tuple[str, str]] = []  # what was written at that moment
        self._again: list[tuple[str, str]] = []

    def next_answer(self) -> None:
        """What comes now may have been there before."""
        self._again = list(self._then)

    def new(self, event: dict[str, Any]) -> bool:
        """Whether a line was not shown yet; from now on it was."""
        moment, line = int(event.get("timestamp") or 0), (str(event["type"]), str(event.get("data") or ""))
        if moment < self._moment:
            return False
        if moment == self._moment and line in self._again:
            self._again.remove(line)
            return False
        if moment > self._moment:
            self._moment, self._then = moment, []
        self._then.append(line)
        return True


def _path(ctx: click.Context, name: str | None = None, below: str = "") -> str:
    named = "" if name is None else f"/{quote(name, safe='')}"
    return sprite_path(sprite_name(ctx, None), f"/services{named}{below}")


def _words(options: Iterable[str]) -> list[str]:
    return [word for option in options for word in option.split(",") if word]


def _for(duration: str | None, no_stream: bool) -> dict[str, str]:
    if no_stream and duration:
        raise InvalidError("--no-stream waits for nothing", hint="leave out --no-stream or --duration")
    return {"duration": "0s"} if no_stream else {"duration": duration} if duration else {}


def _state(service: dict[str, Any]) -> dict[str, Any]:
    return service.get("state") or {}


def _follow(
    node: Api,
    method: str,
    path: str,
    query: dict[str, str],
    *,
    as_json: bool,
    quiet: bool = False,
    ends_well: bool = False,
    seen: _Seen | None = None,
    **arguments: Any,
) -> None:
    """Show events of a service as they come: what it writes on the stream it wrote it to, the rest on standard error.

    Args:
        ends_well: that it ends is no failure.
        seen: lines that are not to be shown again.

    Raises:
        BallpointError: it failed, or ended before it was to.
    """
    last: dict[str, Any] = {}
    failure: str | None = None
    if seen is not None:
        seen.next_answer()
    for last in node.lines(method, path, params=query, **arguments):
        if seen is not None and last["type"] in ("stdout", "stderr") and not seen.new(last):
            continue
        kind, data = last["type"], str(last.get("data") or "")
        if as_json:
            click.echo(json.dumps(last))
        elif kind in ("stdout", "stderr"):
            if not quiet:
                click.echo(data, nl=not data.endswith("\n"), err=kind == "stderr")
        elif kind != "complete" and kind != "error":
            click.echo(_told(kind, data, last.get("exit_code")), err=True)
        if kind == "error":
            failure = data or "the service failed"
        elif kind == "exit" and last.get("exit_code"):
            failure = failure or f"the service ended with {last['exit_code']}"
        elif kind == "started":
            failure = None
    if last.get("type") not in ("complete", "error"):
        raise UnavailableError("the connection ended before the node said how it went", hint="ballpoint services list")
    if failure is not None and not (ends_well and last["type"] == "complete"):
        raise BallpointError(failure, hint="ballpoint services logs shows what it wrote")


def _told(kind: str, data: str, code: int | None) -> str:
    return kind + (f" with {code}" if code is not None else "") + (f": {data}" if data else "")
