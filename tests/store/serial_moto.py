"""A moto that answers one request after the other: left to itself, it lets two creates of one object win."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import run_simple

_application = DomainDispatcherApplication(create_backend_app)
_one = threading.Lock()


def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    with _one:
        return list(_application(environ, start_response))


if __name__ == "__main__":
    run_simple("127.0.0.1", int(sys.argv[1]), application, threaded=True, request_handler=MotoRequestHandler)
