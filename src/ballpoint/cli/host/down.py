"""down, uninstall."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from ballpoint.cli.client import settings
from ballpoint.cli.host.options import data_option
from ballpoint.cli.host.unit import UNIT_FILE, admin_token_file, remove_unit, stop_unit
from ballpoint.core.config import DEFAULT_CACHE, DEFAULT_DATA, RUN_ROOT, NodeConfig, load_config


def _config(data: Path | None) -> NodeConfig:
    return load_config(None, data=data or DEFAULT_DATA)


@click.command()
@data_option
def down(data: Path | None) -> None:
    """Stop a node with its sprites, also one that is dead already. The data stays."""
    config = _config(data)
    by_unit = stop_unit(config)
    click.echo(_stop(config, by_unit) or f"no node runs in {config.data}")


def _stop(config: NodeConfig, by_unit: bool) -> str | None:
    """Stop what runs of the node, or remove what a dead one left, and say what was done; None where there was nothing.

    Args:
        by_unit: systemd has stopped it already; its sprites are left.
    """
    from ballpoint.node import supervisor

    done = supervisor.stop(config)
    if by_unit or done == "stopped":
        return f"stopped the node in {config.data}; its sprites are cold"
    if done == "removed":
        return f"the node in {config.data} was dead already: removed what it had left; its sprites are cold"
    return None


def _other(run: Path) -> str:
    """The node that `run` is of, and what would end it."""
    from ballpoint.node import supervisor

    data, runs = supervisor.found_in(run)
    if data is None:
        return f"what is in {run}"
    if runs:
        return f"the node in {data}, which runs"
    return f"the node in {data}, which is dead (ballpoint down --data {shlex.quote(str(data))} removes what it left)"


def _shared() -> set[str]:
    """Names below the run directory that all nodes of a host have in common."""
    from ballpoint.host import dynmods, loop, rcu, slots, staging
    from ballpoint.network import forwarding

    return {slots.DIRECTORY, forwarding.DIRECTORY, dynmods.DIRECTORY, loop.DIRECTORY, rcu.DIRECTORY, staging.PLACE.name}


@click.command()
@data_option
@click.option("--cache", type=click.Path(path_type=Path), default=DEFAULT_CACHE)
@click.option("--purge", is_flag=True, help="Remove the data and the images, too.")
def uninstall(data: Path | None, cache: Path, purge: bool) -> None:
    """Leave the host as it was found: stop the node, remove unit and settings, and with --purge all data.

    With the data goes the administrator's token, which this user's client has. Packages stay, and the last node's
    uninstall prints the command that removes those that were installed for Ballpoint.
    """
    from ballpoint.host.files import remove_tree
    from ballpoint.host.requirements import (
        INSTALLED_FILE,
        MODULES_FILE,
        SYSCTL_FILE,
        forget_packages,
        installed_packages,
    )

    config = _config(data)
    by_unit = remove_unit(config)
    removed = [str(UNIT_FILE)] if by_unit else []
    if done := _stop(config, by_unit):
        click.echo(done)
    shared = _shared()
    if others := sorted(path for path in RUN_ROOT.glob("*") if path.name not in shared):
        click.echo("what all nodes of this host share stays, for")
        for each in others:
            click.echo(f"  {_other(each)}")
    else:
        remove_tree(RUN_ROOT)
        for file, rest in ((SYSCTL_FILE, " (the limits themselves stay until the next boot)"), (MODULES_FILE, "")):
            if file.exists():
                file.unlink()
                removed.append(f"{file}{rest}")
        if packages := installed_packages():
            click.echo(
                "these packages were installed for it and stay; to remove them, unless something else wants them:"
            )
            click.echo(f"  apt-get remove --autoremove {' '.join(packages)}")
        if forget_packages():
            removed.append(str(INSTALLED_FILE))
    if purge:
        removed += remove_data(config, cache)
    click.echo("removed " + ", ".join(removed) if removed else "there was nothing to remove")


def remove_data(config: NodeConfig, cache: Path) -> list[str]:
    """Remove the node's data, its token from what the client remembers, and the images unless another node has sprites
    on them. Returns what was removed."""
    from ballpoint.host.files import remove_tree
    from ballpoint.image.uses import Uses

    token = admin_token_file(config)
    removed = [f"the token for {url}" for url in (settings.forget(token.read_text()) if token.exists() else ())]
    if remove_tree(config.data):
        removed.append(str(config.data))
    if not cache.exists():
        return removed
    uses = Uses(cache)
    uses.forget(config.node_id)
    if others := sorted(str(use.data) for use in uses.read().values()):
        click.echo(f"{cache} stays: it is used by {', '.join(others)} (ballpoint image prune --forget DATA)")
        return removed
    return [*removed, str(cache)] if remove_tree(cache) else removed
