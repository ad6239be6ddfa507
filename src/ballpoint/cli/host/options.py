"""Options that several of the node's verbs share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from ballpoint.core.config import DEFAULT_DATA, NodeConfig, load_config

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = [
    click.option("--config", "config_file", type=click.Path(path_type=Path), help="TOML file with the same settings."),
    click.option("--data", type=click.Path(path_type=Path), help="Directory of the node [/var/lib/ballpoint]."),
    click.option(
        "--cache", type=click.Path(path_type=Path), help="Images and helpers of this host [/var/cache/ballpoint]."
    ),
    click.option("--listen", metavar="HOST:PORT", help="Where to serve [127.0.0.1:7070]."),
    click.option("--image", type=click.Choice(["standard", "slim"]), help="Image of new sprites [standard]."),
    click.option("--pool", type=int, help="Blanks kept standing by at least [4]."),
    click.option("--pool-max", type=int, help="Blanks kept at most when demand is high [32]."),
    click.option("--edges", type=int, help="Front-door processes [one per core]."),
    click.option("--connections-per-address", type=int, help="Per front-door process; not of loopback [2048]."),
    click.option("--token-file", type=click.Path(path_type=Path), help="File with one token, made known at start."),
    click.option("--dns", metavar="HOST[:PORT]", help="Resolver asked for sprites [the host's]."),
    click.option(
        "--ca-bundle", type=click.Path(path_type=Path), help="Certificates sprites trust [the administrator's]."
    ),
    click.option("--egress-allow", multiple=True, metavar="CIDR", help="Reachable although in a blocked range."),
    click.option("--mirror", metavar="URL", help="Debian mirror of the image build [the host's]."),
    click.option("--subnet", metavar="CIDR", help="Addresses of this host's sprites [10.213.0.0/16]."),
    click.option("--memory-mb", type=int, help="Memory of a sprite that asks for none [8192]."),
    click.option("--cpus", type=float, help="Processors of a sprite that asks for none [all]."),
    click.option("--pids", type=int, help="Processes of a sprite [4096]."),
    click.option("--reserve-mb", type=int, help="Memory that stays free; with less, no sprite is made [128]."),
    click.option("--journal-mb", type=int, help="Of each sprite, what its commands wrote can be read again [64]."),
    click.option("--disk-gb", type=int, help="Apparent size of a new disk [100]."),
    click.option("--pool-gb", type=int, help="Size of the volume pool's file [most of what is free]."),
    click.option("--store", metavar="URL", help="Object store that keeps the disks [the directory `store` in --data]."),
    click.option("--domain", help="What sprites' URLs end with [sprites.localhost]."),
    click.option("--front", metavar="SCHEME[:PORT]", help="What clients of URLs find in front [http, at --listen]."),
    click.option("--trusted-proxies", multiple=True, metavar="CIDR", help="Proxies in front [loopback]."),
    click.option("--idle-seconds", type=int, help="A sprite that nobody uses for so long is frozen; 0: never [30]."),
    click.option("--cold-seconds", type=int, help="One that is frozen for so long is stopped; 0: never [3600]."),
    click.option("--wake-seconds", type=int, help="A request to a URL waits so long for its sprite to start [30]."),
]

_LISTS = ("egress_allow", "trusted_proxies")


def node_options(command: F) -> F:
    """All settings of a node as options of `command`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def config_from(options: dict[str, Any], base: NodeConfig | None = None) -> NodeConfig:
    """The configuration that a command's options and its file give; `base` stands in for the defaults."""
    flags = {**options, **{name: options[name] or None for name in _LISTS}}
    config = load_config(flags.pop("config_file"), base, **flags)
    if config.store is not None:
        from ballpoint.store.url import check_url

        # Before it is written or shown anywhere: it may hold a credential.
        check_url(config.store)
    return config


def data_option(command: F) -> F:
    """Only --data, for verbs on what a node left."""
    return click.option("--data", type=click.Path(path_type=Path), help="Directory of the node.")(command)


def store_option(command: F) -> F:
    """Only --store, for verbs on a store; see `store_url`."""
    return click.option("--store", "url", metavar="URL", help="The object store [that of the node in --data].")(command)


def store_url(data: Path | None, url: str | None) -> str:
    """The store that a verb is to act on: the one that is named, or that of the node in `data`.

    Raises:
        InvalidError: the URL is none of a store.
    """
    from ballpoint.store.url import check_url

    return check_url(url) if url is not None else node_config(data).store_url


def node_config(data: Path | None) -> NodeConfig:
    """What the node in `data` was told, as far as `up` wrote it down and this user may read it."""
    from ballpoint.cli.host.unit import config_file

    config = load_config(None, data=data or DEFAULT_DATA)
    written = config_file(config)
    return load_config(written, data=config.data) if os.access(written, os.R_OK) else config
