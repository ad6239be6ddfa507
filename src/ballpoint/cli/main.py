"""The `ballpoint` command. Commands are imported when they are used, so that each starts fast."""

from __future__ import annotations

import importlib
import logging
import sys
from typing import TYPE_CHECKING, NoReturn

import click

from ballpoint import __version__
from ballpoint.core.errors import BallpointError, InvalidError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

# name -> (module below ballpoint.cli, attribute)
_COMMANDS = {
    "activity": ("client.state", "activity"),
    "api": ("client.raw", "api"),
    "attach": ("client.sessions", "attach"),
    "auth": ("client.login", "auth"),
    "check": ("client.state", "check"),
    "checkpoint": ("client.checkpoints", "checkpoint"),
    "completion": ("client.completion", "completion"),
    "console": ("client.exec_command", "console"),
    "create": ("client.sprites", "create"),
    "destroy": ("client.sprites", "destroy"),
    "doctor": ("host.doctor", "doctor"),
    "down": ("host.down", "down"),
    "events": ("client.sprites", "events"),
    "exec": ("client.exec_command", "exec_"),
    "file": ("client.file", "file"),
    "fork": ("client.checkpoints", "fork"),
    "image": ("host.image", "image"),
    "info": ("client.sprites", "info"),
    "list": ("client.sprites", "list_"),
    "login": ("client.login", "login"),
    "logout": ("client.org", "logout"),
    "logs": ("client.sprites", "logs"),
    "org": ("client.org", "org"),
    "proxy": ("client.proxy", "proxy"),
    "recover": ("host.recover", "recover"),
    "restart": ("client.sprites", "restart"),
    "restore": ("client.checkpoints", "restore"),
    "serve": ("host.serve", "serve"),
    "services": ("client.services", "services"),
    "sessions": ("client.sessions", "sessions"),
    "set": ("client.state", "set_"),
    "sleep": ("client.sprites", "sleep"),
    "sync": ("client.checkpoints", "sync"),
    "store": ("host.store", "store"),
    "token": ("host.token", "token"),
    "uninstall": ("host.down", "uninstall"),
    "up": ("host.up", "up"),
    "upgrade": ("client.state", "upgrade"),
    "url": ("client.url", "url"),
    "use": ("client.sprites", "use"),
    "wake": ("client.sprites", "wake"),
}
_OF_NO_SPRITE = ("auth", "completion", "create", "list_", "login", "logout", "org", "use")
_ALIASES = {"ls": "list", "x": "exec", "c": "console", "o": "org", "orgs": "org", "organizations": "org"}
_UNKNOWN_COMMAND = 2
_STDERR = "-"
_VALUED = (["-o"], ["--org"], ["-s"], ["--sprite"])


def _sprites(ctx: click.Context, param: click.Parameter, begun: str) -> list[CompletionItem]:
    from ballpoint.cli.client import complete

    return complete.sprites(ctx, param, begun)


class _Commands(click.Group):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """An option whose value may be left out would take the command for it, so a bare --debug is given one."""
        for place, word in enumerate(args):
            if word == "--debug":
                args = [*args[:place], f"--debug={_STDERR}", *args[place + 1 :]]
            elif not word.startswith("-") and args[place - 1 : place] not in _VALUED:
                break
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        place = _COMMANDS.get(_ALIASES.get(cmd_name, cmd_name))
        if place is None:
            return None
        module, attribute = place
        command: click.Command = getattr(importlib.import_module(f"ballpoint.cli.{module}"), attribute)
        if module.startswith("client.") and attribute not in _OF_NO_SPRITE:
            _take_sprite(command)
        return command


def _take_sprite(command: click.Command) -> None:
    """Let `command` and those below it take -s, too: users write it there as well as before (contract 5)."""
    for below in command.commands.values() if isinstance(command, click.Group) else ():
        _take_sprite(below)
    taken = {word for parameter in command.params for word in (*parameter.opts, *parameter.secondary_opts)}
    if "--sprite" not in taken:
        command.params.append(
            click.Option(
                ["--sprite"] if "-s" in taken else ["-s", "--sprite"],
                expose_value=False,
                callback=_choose,
                help="Sprite to act on.",
                shell_complete=_sprites,
            )
        )


def _choose(ctx: click.Context, param: click.Parameter, name: str | None) -> None:
    if name:
        root = ctx.find_root()
        root.params["sprite"] = name  # for who completes, when no command has run
        if root.obj is not None:
            root.obj["sprite"] = name


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="ballpoint")
@click.option(
    "-o", "--org", metavar="[API:]ORG", envvar="SPRITE_ORG", help="Organization to act for, at a node's URL or alias."
)
@click.option("-s", "--sprite", help="Sprite to act on.", shell_complete=_sprites)
@click.option("--debug", metavar="[FILE]", help="Tell each request, on standard error or into FILE.")
@click.pass_context
def cli(ctx: click.Context, org: str | None, sprite: str | None, debug: str | None) -> None:
    """Computers the way one has ball-point pens.

    Exit codes: a sprite's command's own (127 where it is not there, 126 where it cannot be run, 128 and the number of
    the signal that ended it); 1 for what failed, 2 for a command line that is wrong.
    """
    ctx.obj = {"org": org, "sprite": sprite}
    if debug is not None:
        try:
            log = click.open_file(debug, "a") if debug != _STDERR else sys.stderr
        except OSError as error:
            raise InvalidError(f"cannot write {debug}: {error.strerror}") from error
        logging.basicConfig(stream=log, level=logging.INFO, format="%(asctime)s %(message)s")


def main() -> NoReturn:
    """Run a command; an error is one sentence and a hint, never a traceback."""
    try:
        code = cli.main(standalone_mode=False, prog_name="ballpoint", complete_var="_BALLPOINT_COMPLETE")
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
