"""api: any request to the node, with the token that is selected."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import click

from ballpoint.cli.client import streams
from ballpoint.cli.client.http import api as selected_api
from ballpoint.cli.client.http import sprite_name, sprite_path
from ballpoint.core.errors import InvalidError

_READ = 256 * 1024
_STDIN = "-"


class _CurlLike(click.Command):
    """Options may come behind `--`, too, as the original's are passed on to curl there."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" in args:
            place = args.index("--")
            args = [*args[:place], *args[place + 1 :]]
        return super().parse_args(ctx, args)


@click.command("api", cls=_CurlLike)
@click.argument("path")
@click.option("-X", "--request", "method", metavar="METHOD", help="GET, or POST where there is a body [that].")
@click.option(
    "-d", "--data", "--data-raw", "--data-binary", "--json", "data", metavar="BODY",
    help="The body: text, @FILE, or @- for standard input.",
)  # fmt: skip
@click.option("-T", "--upload-file", "upload", metavar="FILE", help="The body, by PUT; - is standard input.")
@click.option("-H", "--header", "headers", multiple=True, metavar="NAME: VALUE", help="A field of the request.")
@click.option("-i", "--include", is_flag=True, help="Show the status and the fields of the answer, too.")
@click.option("-o", "--output", metavar="FILE", help="Write the answer's body there.")
@click.option("-s", "--silent", "-S", "--show-error", "-N", "--no-buffer", is_flag=True, help="As it is anyway.")
@click.pass_context
def api(
    ctx: click.Context,
    path: str,
    method: str | None,
    data: str | None,
    upload: str | None,
    headers: tuple[str, ...],
    include: bool,
    output: str | None,
    silent: bool,
) -> int:
    """Ask the node for PATH, such as /v1/sprites; one without a leading slash is below the selected sprite's.

    The body of the answer comes as it is and as it comes. The exit code is 0 for an answer of 1xx to 3xx, 4 for 4xx, 5
    for 5xx, and 1 where there is none. The options are those of curl(1).
    """
    if data is not None and upload is not None:
        raise InvalidError("there are two bodies", hint="leave out -d or -T")
    node = selected_api(ctx)
    where = path if path.startswith("/") else sprite_path(sprite_name(ctx, None), f"/{path}")
    fields = dict(_field(each) for each in headers)
    content = _body(data, upload)
    if data is not None and not {"content-type"} & {name.lower() for name in fields}:
        fields["Content-Type"] = "application/json"
    verb = method or ("PUT" if upload is not None else "POST" if data is not None else "GET")
    with node.answer(verb.upper(), where, content=content, headers=fields, timeout=None) as answer:
        if include:
            lines = [f"HTTP/1.1 {answer.status_code} {answer.reason_phrase}".rstrip()]
            lines += [f"{name}: {value}" for name, value in answer.headers.multi_items()]
            streams.write(1, ("\r\n".join(lines) + "\r\n\r\n").encode())
        if output is None:
            for piece in answer.iter_bytes():
                streams.write(1, piece)
        else:
            with _opened(output, "wb") as file:
                file.writelines(answer.iter_bytes())
    status = answer.status_code // 100
    return status if status > 3 else 0


def _body(data: str | None, upload: str | None) -> bytes | Iterator[bytes] | None:
    """A file is sent as it is read, text at once."""
    file = upload if upload is not None else data[1:] if data is not None and data.startswith("@") else None
    if file is not None or data == _STDIN:
        return _pieces(sys.stdin.buffer if file in (None, _STDIN) else _opened(file or "", "rb"))
    return None if data is None else data.encode(errors="surrogateescape")


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while piece := file.read(_READ):
            yield piece


def _opened(path: str, mode: str) -> BinaryIO:
    try:
        return Path(path).open(mode)  # type: ignore[return-value]
    except OSError as error:
        raise InvalidError(f"cannot open {path}: {error.strerror}") from error


def _field(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise InvalidError(f"{text!r} is no field", hint="for example -H 'Accept: application/x-ndjson'")
    return name.strip(), value.strip()
