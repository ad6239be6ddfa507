"""One connection to a port of a sprite, through the node."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from time import perf_counter

from websockets.frames import Frame, Opcode

from bench.context import Bench, Context, alternated, cpu_sentence
from bench.programs import ENDS
from bench.report import Result, Series, at_least, missing, number

_MIB = 1 << 20
_SINK, _SOURCE = 7001, 7002
_SOCAT_SINK, _SOCAT_SOURCE = 7101, 7102
_FRAME = 64 * 1024
_SECONDS = 600.0


async def proxy(context: Context) -> Result:
    total = context.count(512, 128) * _MIB
    result = Result("proxy", f"{total // _MIB} MiB through one proxied connection, to the sprite and from it")
    async with context.node(pool=1) as bench:
        name = bench.name()
        await bench.client.create(name)
        start = (
            'setsid python3 -c "$0" "$@" >/tmp/ends 2>&1 </dev/null & until grep -q ready /tmp/ends; do sleep 0.1; done'
        )
        await bench.client.run(name, "sh", "-c", start, ENDS, str(total), str(_SINK), str(_SOURCE))
        measures: dict[str, Callable[[], Awaitable[float]]] = {
            "to the sprite": partial(_timed, total, partial(_give, partial(_proxied, bench, name, _SINK), True)),
            "from the sprite": partial(_timed, total, partial(_take, partial(_proxied, bench, name, _SOURCE))),
        }
        async with _socat(bench, name) as address:
            if address is not None:
                direct = {
                    port: partial(socket.create_connection, (address, port)) for port in (_SOCAT_SINK, _SOCAT_SOURCE)
                }
                measures["socat, to"] = partial(_timed, total, partial(_give, direct[_SOCAT_SINK], False))
                measures["socat, from"] = partial(_timed, total, partial(_take, direct[_SOCAT_SOURCE]))
            samples = await alternated(context.count(7, 3), measures, warm=1)
        before = bench.cpu()
        await measures["to the sprite"]()
        between = bench.cpu()
        await measures["from the sprite"]()
        after = bench.cpu()
    result.series = {key: Series.of(values, "MiB/s") for key, values in samples.items()}
    for ours, theirs in (("to the sprite", "socat, to"), ("from the sprite", "socat, from")):
        rate = result.series[ours].p50
        text = f"{ours} {number(rate)} MiB/s (n={len(samples[ours])})"
        if theirs in samples:
            yardstick = result.series[theirs].p50
            result.checks.append(
                at_least(text, rate / yardstick, 0.5, yardstick=f"socat to the same port: {number(yardstick)} MiB/s")
            )
        else:
            result.checks.append(missing(text, "socat", "not installed", "at least 0.5x"))
    result.notes.append(
        "client: one process, one connection; no file is read or written, so there is no cache. Socat runs in the"
        " sprite's network namespace, with its buffers of 8 KiB (with larger ones: docs/ports.md); the host"
        " connects to it"
    )
    result.profile = [
        cpu_sentence(before, between, 1, f"{total // _MIB} MiB to the sprite"),
        cpu_sentence(between, after, 1, f"{total // _MIB} MiB from the sprite"),
    ]
    return result


@asynccontextmanager
async def _socat(bench: Bench, name: str) -> AsyncIterator[str | None]:
    """The sprite's address, where socat joins its ports to those of localhost; None where there is no socat."""
    if shutil.which("socat") is None:
        yield None
        return
    init = await bench.process(name, "inner/main", "init")
    inside = ["nsenter", "--target", str(init), "--net"]
    shown = await asyncio.to_thread(
        subprocess.run, [*inside, "ip", "-json", "-4", "addr", "show", "eth0"], capture_output=True, check=True
    )
    address = str(json.loads(shown.stdout)[0]["addr_info"][0]["local"])
    started = [
        await asyncio.create_subprocess_exec(
            *inside, "socat", f"TCP-LISTEN:{port},fork,reuseaddr", f"TCP:127.0.0.1:{target}"
        )
        for port, target in ((_SOCAT_SINK, _SINK), (_SOCAT_SOURCE, _SOURCE))
    ]
    try:
        for port in (_SOCAT_SINK, _SOCAT_SOURCE):
            await _listens(address, port)
        yield address
    finally:
        for program in started:
            program.kill()
            await program.wait()


async def _listens(address: str, port: int) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                _, writer = await asyncio.open_connection(address, port)
            except ConnectionRefusedError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return


async def _timed(total: int, run: Callable[[int], None]) -> float:
    started = perf_counter()
    await asyncio.to_thread(run, total)
    return total / _MIB / (perf_counter() - started)


def _proxied(bench: Bench, name: str, port: int) -> socket.socket:
    """A WebSocket joined to a port. The client is not measured: its frames are ready-made, and read unseen."""
    sock = socket.create_connection((bench.client.host, bench.client.port), timeout=_SECONDS)
    sock.sendall(
        f"GET /v1/sprites/{name}/proxy HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {bench.node.token}\r\n"
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
    )
    sock.sendall(Frame(Opcode.TEXT, json.dumps({"port": port}).encode()).serialize(mask=True))
    said = b""
    while not said.endswith(b"}"):
        if not (byte := sock.recv(1)):
            raise RuntimeError(f"the proxy did not connect: {said!r}")
        said += byte
    return sock


def _give(connect: Callable[[], socket.socket], framed: bool, total: int) -> None:
    """Send `total` bytes, until the other end says that it has them."""
    block = bytes(_MIB)
    if framed:
        block = Frame(Opcode.BINARY, bytes(_FRAME)).serialize(mask=True) * (_MIB // _FRAME)
    with connect() as sock:
        for _ in range(total // _MIB):
            sock.sendall(block)
        said = b""
        while b"k" not in said:
            said = sock.recv(100)
            if not said:
                raise RuntimeError("the connection ended before all had come")


def _take(connect: Callable[[], socket.socket], total: int) -> None:
    buffer, got = bytearray(_MIB), 0
    with connect() as sock:
        while got < total:
            count = sock.recv_into(buffer)
            if not count:
                raise RuntimeError(f"{got} of {total} bytes came")
            got += count
