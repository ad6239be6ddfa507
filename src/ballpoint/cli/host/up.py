"""up: from a bare machine to a console in a sprite."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click
import msgspec

from ballpoint.cli.client import settings
from ballpoint.cli.client.exec_command import open_console, run
from ballpoint.cli.client.http import Api, sprite_path
from ballpoint.cli.host.options import config_from, node_options
from ballpoint.cli.host.token import with_registry
from ballpoint.cli.host.unit import UNIT, admin_token_file, config_file, has_unit, install_unit
from ballpoint.core import ids
from ballpoint.core.config import DEFAULT_LISTEN, DEFAULT_ORG, NodeConfig
from ballpoint.core.errors import ConflictError, InvalidError, NotFoundError, UnauthorizedError, UnavailableError
from ballpoint.host import logfile, notify, process
from ballpoint.host.files import write_atomically
from ballpoint.host.requirements import install_packages, load_modules, missing_packages, raise_sysctls
from ballpoint.image import mirrors
from ballpoint.store import url
from ballpoint.volume.pool import shortfall

if TYPE_CHECKING:
    from ballpoint.registry.registry import Registry

FIRST_SPRITE = "first"
_START_SECONDS = 60.0
_GIB = 1 << 30
_GREETING = """
. /etc/os-release
echo "Hello from a sprite: $PRETTY_NAME, $(nproc) processors, $(df -h --output=avail / | tail -1 | tr -d " ") of disk"
"""


def _say(text: str) -> None:
    click.echo(f"ballpoint: {text}", err=True)


@click.command()
@node_options
@click.option("--system", is_flag=True, help="Run as a systemd unit that starts with the host.")
@click.option("--no-console", is_flag=True, help="Open no console; run one command and print the result.")
def up(system: bool, no_console: bool, **options: Any) -> int:
    """Install what is missing, build the image, start a node, and open a first sprite. Run it as often as you like."""
    if os.geteuid() != 0:
        raise InvalidError("a node must be run as root", hint="sudo ballpoint up")
    from ballpoint.node import supervisor

    config = config_from(options)
    running = supervisor.running(config)
    if running is None:
        _refuse_unusable(config)
    else:
        _refuse_changes(running, config_from(options, base=running), system=system)
        config = running
    missing = missing_packages()
    if missing:
        _say(f"installing {', '.join(missing)}")
        install_packages(missing)
    load_modules()
    for name, value in raise_sysctls().items():
        _say(f"raised {name} to {value}")
    if running is None:
        _ensure_image(config)
        config = _with_token(config)
        _start(config, system)
    else:
        _say(f"a node is running on {config.listen}")
    if short := shortfall(config.data):
        _say(f"warning: the pool may grow by {short / _GIB:.1f} GiB more than is free below {config.data}")
    return _first_sprite(config, console=sys.stdin.isatty() and not no_console)


def _refuse_unusable(config: NodeConfig) -> None:
    """Raise, before anything is changed, where the front door of a new node could not be opened, or found again."""
    from ballpoint.node import supervisor

    if config.listen_address[1] == 0:
        raise InvalidError(
            "a node that stays must have a port of its own", hint=f"for example --listen {DEFAULT_LISTEN}"
        )
    supervisor.bind(config).close()


def _refuse_changes(running: NodeConfig, wanted: NodeConfig, *, system: bool) -> None:
    """Raise where a running node does not have the settings that were asked for: it takes none while it runs.

    Args:
        wanted: the settings of `running` with what was asked for over them.
        system: a systemd unit was asked for.
    """
    # The data directory is which node it is; it may have been given by another path.
    names = [name for name in NodeConfig.__struct_fields__ if name != "data"]
    pairs = {name: (getattr(running, name), getattr(wanted, name)) for name in names}
    changed = [f"{name} is {_shown(has)}, not {_shown(asked)}" for name, (has, asked) in pairs.items() if has != asked]
    by_unit = has_unit(running)
    if system and not by_unit:
        changed.append("it is not run by systemd")
    if changed:
        hint = f"ballpoint down --data {running.data}; then ballpoint up with these options"
        if by_unit:
            hint = f"change them in {config_file(running)}; then systemctl restart {UNIT} (its sprites run on)"
        raise ConflictError(f"the node in {running.data} runs, with other settings: {'; '.join(changed)}", hint=hint)
    if running.token_file is None:
        raise ConflictError(
            f"the node in {running.data} was started without a token file",
            hint=f"ballpoint token create --data {running.data}; then ballpoint login {running.url}",
        )


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(value) or "empty"
    return "not set" if value is None else str(value)


def _ensure_image(config: NodeConfig) -> None:
    from ballpoint.cli.host.progress import showing
    from ballpoint.image.catalogue import Catalogue

    catalogue = Catalogue(config.cache)
    if catalogue.current(config.image) is None:
        _say(f"building the {config.image} image, once for this host")
        with showing(f"image {config.image}") as report:
            catalogue.ensure(config.image, mirror=config.mirror, progress=report)


def _with_token(config: NodeConfig) -> NodeConfig:
    """The administrator's token: made here once, known to the node by its file, remembered by the client."""
    if config.token_file is not None:
        return config
    file = admin_token_file(config)
    if not file.exists():
        config.data.mkdir(parents=True, exist_ok=True)
        write_atomically(file, f"{_new_token(config)}\n".encode(), mode=0o600)
    return msgspec.structs.replace(config, token_file=file)


def _new_token(config: NodeConfig) -> str:
    """A token of the organization whose sprites are there already, as after a recovery; else of a new one."""
    if not config.registry_file.exists():
        return f"{DEFAULT_ORG}/{ids.new_instance_id()}/{ids.new_instance_id()}/{ids.new_secret()}"

    async def work(registry: Registry) -> str:
        known = await registry.organizations()
        org = DEFAULT_ORG if DEFAULT_ORG in known or not known else known[0]
        return (await registry.create_token(org, "made by `up`"))[1]

    return with_registry(config.data, work)


def _start(config: NodeConfig, system: bool) -> None:
    _say(f"starting a node on {config.listen}, data in {config.data}")
    config.data.mkdir(parents=True, exist_ok=True)
    write_atomically(config_file(config), _toml(config).encode(), mode=0o600)
    if system:
        install_unit(config)
    else:
        _start_here(config)


def _start_here(config: NodeConfig) -> None:
    """Start a node that outlives this process, and wait until it is ready."""
    from ballpoint.node.supervisor import LOG_BYTES

    log = config.data / "node.log"
    command = [
        sys.executable, "-m", "ballpoint.cli", "serve", "--config", str(config_file(config)), "--log-file", str(log)
    ]  # fmt: skip
    logfile.bound(log, LOG_BYTES)
    with notify.Listener() as listener, os.fdopen(logfile.open_log(log), "ab") as stream:
        before = log.stat().st_size
        child = process.start(
            command,
            stdout=stream.fileno(),
            stderr=stream.fileno(),
            new_session=True,
            env={**mirrors.variables(), **url.variables(config.store_url), notify.VARIABLE: listener.address},
        )
        if listener.wait(child, _START_SECONDS):
            return
    if child.poll() is None:
        raise UnavailableError(f"the node is not ready after {_START_SECONDS:g} s", hint=f"its log: {log}")
    said = log.read_bytes()[before:].decode(errors="replace").splitlines()
    told = next((line for line in reversed(said) if line.startswith("ballpoint: ")), "it ended at once")
    raise UnavailableError(f"the node did not start: {told.removeprefix('ballpoint: ')}", hint=f"its log: {log}")


def _toml(config: NodeConfig) -> str:
    """The configuration as TOML; every value is a string, a number or a list of strings, whose JSON is TOML, too."""
    values = msgspec.to_builtins(config, enc_hook=str)
    lines = [f"{key} = {msgspec.json.encode(value).decode()}" for key, value in values.items() if value is not None]
    return "\n".join(lines) + "\n"


def _first_sprite(config: NodeConfig, *, console: bool) -> int:
    assert config.token_file is not None
    selected = settings.selection(config.url, config.token_file.read_text())
    node = Api(selected)
    try:
        node.call("GET", sprite_path(FIRST_SPRITE))
        exists = True
    except NotFoundError:
        exists = False
    except UnauthorizedError as error:
        raise ConflictError(
            f"the token in {config.token_file} is none of the node in {config.data}",
            hint=f"ballpoint token create --data {config.data}; then ballpoint login {config.url}",
        ) from error
    settings.remember(selected)
    if not exists:
        node.call("POST", "/v1/sprites", json={"name": FIRST_SPRITE})
        _say(f"created the sprite {FIRST_SPRITE!r}")
    if console:
        _say(f"opening a console in {FIRST_SPRITE!r} (exit ends it)")
        return open_console(node, FIRST_SPRITE)
    _say(f"running a command in {FIRST_SPRITE!r}")
    code = run(node, FIRST_SPRITE, ("bash", "-c", _GREETING), directory=None, environment={}, terminal=False)
    if code == 0:
        program = "ballpoint" if process.which("ballpoint") else sys.argv[0]
        _say(f"next: {program} create, {program} console {FIRST_SPRITE}, {program} --help")
    return code
