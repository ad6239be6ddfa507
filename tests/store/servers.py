"""Object stores of others, on loopback: a real one (SeaweedFS), a fast one (moto), and one that ignores conditions."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.ports import free_port
from tests.support.waiting import eventually

BUCKET, ACCESS_KEY, SECRET_KEY = "ballpoint", "test-key", "test-secret-never-shown"
ENVIRONMENT = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
_BIN = Path(sys.executable).parent


@contextmanager
def seaweedfs(directory: Path) -> Iterator[str]:
    """The endpoint of a SeaweedFS below `directory`. It makes buckets as they are named."""
    identity = {"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}
    actions = ["Admin", "Read", "List", "Tagging", "Write"]
    config = directory / "s3.json"
    config.write_text(json.dumps({"identities": [{"name": "test", "credentials": [identity], "actions": actions}]}))

    def argv(ports: list[int]) -> list[str]:
        s3, s3_grpc, master, master_grpc, volume, volume_grpc, filer, filer_grpc = ports
        return [
            str(_BIN / "weed"),
            "server",
            f"-dir={directory}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            f"-master.port={master}",
            f"-master.port.grpc={master_grpc}",
            "-master.volumeSizeLimitMB=64",
            f"-volume.port={volume}",
            f"-volume.port.grpc={volume_grpc}",
            "-volume.max=0",
            f"-filer.port={filer}",
            f"-filer.port.grpc={filer_grpc}",
            "-s3",
            f"-s3.config={config}",
            f"-s3.port={s3}",
            f"-s3.port.grpc={s3_grpc}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
        ]

    with _running(argv, 8, directory / "log") as endpoint:
        yield endpoint


@contextmanager
def moto(directory: Path) -> Iterator[str]:
    """The endpoint of a moto with the bucket in it. It takes every signature."""

    def argv(ports: list[int]) -> list[str]:
        return [sys.executable, "-P", str(Path(__file__).with_name("serial_moto.py")), str(ports[0])]

    with _running(argv, 1, directory / "log") as endpoint:
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{BUCKET}", method="PUT"), timeout=60).close()
        yield endpoint


@contextmanager
def rclone(directory: Path) -> Iterator[str]:
    """The endpoint of an rclone, which takes no notice of If-None-Match."""
    (directory / "objects" / BUCKET).mkdir(parents=True)

    def argv(ports: list[int]) -> list[str]:
        options = ["--config", "", "--addr", f"127.0.0.1:{ports[0]}", "--auth-key", f"{ACCESS_KEY},{SECRET_KEY}"]
        return [str(_BIN / "rclone"), "serve", "s3", *options, str(directory / "objects")]

    with _running(argv, 1, directory / "log") as endpoint:
        yield endpoint


def store_url(endpoint: str, prefix: str = "", bucket: str = BUCKET) -> str:
    return f"s3://{bucket}/{prefix}?endpoint={endpoint}&region=us-east-1"


@contextmanager
def _running(argv: Callable[[list[int]], list[str]], ports: int, log: Path) -> Iterator[str]:
    """A server on ports of which the first speaks S3. One that another program has taken meanwhile costs an attempt."""
    for _ in range(5):
        chosen = [free_port() for _ in range(ports)]
        endpoint = f"http://127.0.0.1:{chosen[0]}"
        with log.open("wb") as output, subprocess.Popen(argv(chosen), stdout=output, stderr=output) as server:
            try:
                if _answers(server, endpoint):
                    yield endpoint
                    return
            finally:
                server.kill()
    raise AssertionError(log.read_text())


def _answers(server: subprocess.Popen[bytes], endpoint: str) -> bool:
    """Whether the server came to answer, and did not end."""

    def answered_or_ended() -> bool:
        if server.poll() is not None:
            return True
        try:
            urllib.request.urlopen(endpoint, timeout=10).close()
        except urllib.error.HTTPError as answer:
            answer.close()
        except OSError:
            return False
        return True

    eventually(answered_or_ended, 120)
    return server.poll() is None
