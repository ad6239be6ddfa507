"""The `ballpoint` command. Commands are imported when they are used, so that each starts fast."""

from __future__ import annotations

import importlib
import sys
from typing import NoReturn

import click

from ballpoint import __version__
from ballpoint.core.errors import BallpointError, InvalidError

# name -> (module below ballpoint.cli, attribute)
_COMMANDS = {
    "console": ("client.exec_command", "console"),
    "create": ("client.sprites", "create"),
    "destroy": ("client.sprites", "destroy"),
    "doctor": ("host.doctor", "doctor"),
    "down": ("host.down", "down"),
    "events": ("client.sprites", "events"),
    "exec": ("client.exec_command", "exec_"),
    "image": ("host.image", "image"),
    "info": ("client.sprites", "info"),
    "list": ("client.sprites", "list_"),
    "login": ("client.login", "login"),
    "logs": ("client.sprites", "logs"),
    "restart": ("client.sprites", "restart"),
    "serve": ("host.serve", "serve"),
    "token": ("host.token", "token"),
    "uninstall": ("host.down", "uninstall"),
    "up": ("host.up", "up"),
    "use": ("client.sprites", "use"),
}
_ALIASES = {"ls": "list", "x": "exec", "c": "console"}
_UNKNOWN_COMMAND = 2


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        place = _COMMANDS.get(_ALIASES.get(cmd_name, cmd_name))
        if place is None:
            return None
        module, attribute = place
        command: click.Command = getattr(importlib.import_module(f"ballpoint.cli.{module}"), attribute)
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="ballpoint")
@click.option("-o", "--org", envvar="SPRITE_ORG", help="Organization to act for.")
@click.option("-s", "--sprite", help="Sprite to act on.")
@click.pass_context
def cli(ctx: click.Context, org: str | None, sprite: str | None) -> None:
    """Computers the way one has ball-point pens."""
    ctx.obj = {"org": org, "sprite": sprite}


def main() -> NoReturn:
    """Run a command; an error is one sentence and a hint, never a traceback."""
    try:
        code = cli.main(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(0)
    except click.UsageError as error:
        error.show()
        sys.exit(_UNKNOWN_COMMAND)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except BallpointError as error:
        click.echo(f"ballpoint: {error.message}", err=True)
        if error.hint:
            click.echo(f"  {error.hint}", err=True)
        sys.exit(error.exit_code)
    except PermissionError as error:
        click.echo(f"ballpoint: this user may not use {error.filename or 'what it needs'}", err=True)
        click.echo("  run it as root, or with sudo", err=True)
        sys.exit(InvalidError.exit_code)
    sys.exit(code if isinstance(code, int) else 0)
