"""doctor."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ballpoint.cli.host.options import data_option, node_config

_MARKS = {"ok": "ok     ", "optional": "-      ", "warning": "warning", "missing": "MISSING"}


@click.command()
@data_option
@click.option("--store", metavar="URL", help="Object store to try [the node's].")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(data: Path | None, store: str | None, as_json: bool) -> int:
    """Check what the host must offer, and say what mends what is missing. Exits with 1 where a node cannot work."""
    import msgspec

    from ballpoint.cli.host.checks import checks
    from ballpoint.store.url import check_url

    config = node_config(data)
    found = checks(config if store is None else msgspec.structs.replace(config, store=check_url(store)))
    if as_json:
        click.echo(json.dumps(msgspec.to_builtins(found), indent=2))
    else:
        width = max(len(check.name) for check in found)
        for check in found:
            click.echo(f"{_MARKS[check.state]}  {check.name.ljust(width)}  {check.found}")
            if check.state != "ok" and check.mend:
                click.echo(f"{' ' * (width + 11)}mend: {check.mend}")
    return 1 if any(check.state == "missing" for check in found) else 0
