"""A web server and a proxy to compare with: nginx, in whichever network namespace; and wrk, which asks them."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

TOOLS = ("nginx", "wrk")
CONNECTIONS = 32
_SECONDS = 60.0
_KIB = 1 << 10
_UNITS = {"": 1 / (1 << 20), "K": 1 / _KIB, "M": 1.0, "G": float(_KIB)}
# As Debian's, but for the paths. A log line for each request, as an edge writes one.
_CONFIG = """
worker_processes {workers};
pid {place}/pid;
error_log {place}/error.log;
events {{ worker_connections 1024; }}
http {{
    access_log {log};
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000000;
    client_body_temp_path {place}/body;
    proxy_temp_path {place}/proxy;
    fastcgi_temp_path {place}/fastcgi;
    uwsgi_temp_path {place}/uwsgi;
    scgi_temp_path {place}/scgi;
{blocks}
}}
"""
_SERVER = """
    server {{
        listen 0.0.0.0:{port};
        root {files};
    }}
"""
_PROXY = """
    upstream inside {{
        server {upstream};
        keepalive 64;
        keepalive_requests 1000000000;
    }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://inside;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $http_host;
            proxy_set_header X-Forwarded-For $remote_addr;
            proxy_set_header X-Forwarded-Proto $scheme;
        }}
    }}
"""


def missing() -> list[str]:
    """Which of the tools are not installed."""
    return [tool for tool in TOOLS if shutil.which(tool) is None]


@asynccontextmanager
async def server(place: Path, port: int, files: dict[str, bytes], inside: Sequence[str]) -> AsyncIterator[None]:
    """nginx serving `files` at `port` of every address, in the namespace that the command `inside` enters."""
    root = place / "files"
    root.mkdir(parents=True)
    for name, content in files.items():
        (root / name).write_bytes(content)
    # Its workers are of another identity.
    for each in (root, *root.parents):
        each.chmod(each.stat().st_mode | 0o011)
    block = _SERVER.format(port=port, files=root)
    async with _nginx(place, inside, workers="1", log="off", blocks=block):
        yield


@asynccontextmanager
async def proxy(place: Path, port: int, upstream: str) -> AsyncIterator[None]:
    """nginx at `port` of 127.0.0.1, passing everything to `upstream`, with as many processes as a node has edges."""
    place.mkdir()
    block = _PROXY.format(port=port, upstream=upstream)
    async with _nginx(place, (), workers="auto", log=str(place / "access.log"), blocks=block):
        yield


@asynccontextmanager
async def _nginx(place: Path, inside: Sequence[str], **settings: str) -> AsyncIterator[None]:
    config = place / "nginx.conf"
    config.write_text(_CONFIG.format(place=place, **settings))
    command = [*inside, "nginx", "-e", f"{place}/error.log", "-c", str(config), "-g", "daemon off;"]
    program = await asyncio.create_subprocess_exec(*command)
    try:
        async with asyncio.timeout(_SECONDS):
            while not (place / "pid").exists():
                if program.returncode is not None:
                    raise RuntimeError((place / "error.log").read_text()[-500:])
                await asyncio.sleep(0.01)
        yield
    finally:
        if program.returncode is None:
            program.terminate()
            await program.wait()


async def wrk(url: str, seconds: float, *fields: str) -> tuple[float, float]:
    """Ask for `url` over some connections at once for so long. Returns requests and MiB a second.

    Raises:
        RuntimeError: an answer was no success, or a connection failed.
    """
    headers = [word for field in fields for word in ("-H", field)]
    program = await asyncio.create_subprocess_exec(
        "wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds:g}s", *headers, url, stdout=asyncio.subprocess.PIPE
    )
    assert program.stdout is not None
    async with asyncio.timeout(_SECONDS + seconds):
        said = (await program.stdout.read()).decode()
        await program.wait()
    requests = re.search(r"Requests/sec:\s+([0-9.]+)", said)
    rate = re.search(r"Transfer/sec:\s+([0-9.]+)([KMG]?)B", said)
    if program.returncode or requests is None or rate is None or "Non-2xx" in said or "Socket errors" in said:
        raise RuntimeError(f"wrk says {said!r}")
    return float(requests[1]), float(rate[1]) * _UNITS[rate[2]]
