"""A node with its control API in one process: what the supervisor starts."""

from __future__ import annotations

import sys

from ballpoint.api.app import make_app
from ballpoint.node.main import main

if __name__ == "__main__":
    sys.exit(main(make_app))
