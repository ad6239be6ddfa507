"""A node's settings: one TOML file and the flags of the same names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec
import pytest

from ballpoint.cli.host.options import config_from, node_options
from ballpoint.core.config import NodeConfig, load_config
from ballpoint.core.errors import InvalidError


def test_every_setting_is_a_key_of_the_file_and_a_flag() -> None:
    @click.command()
    @node_options
    def command(**_: Any) -> None: ...

    keys = {field.name for field in msgspec.structs.fields(NodeConfig)}
    assert {parameter.name for parameter in command.params} - {"config_file"} == keys


def test_the_file_is_taken_and_flags_win(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text('data = "/srv/node"\nlisten = "[::1]:80"\npool = 7\ncpus = 1.5\negress_allow = ["10.1.2.0/24"]\n')
    flags = dict.fromkeys((field.name for field in msgspec.structs.fields(NodeConfig)), None)
    taken = config_from({**flags, "config_file": file, "egress_allow": ()})
    assert taken == NodeConfig(
        data=Path("/srv/node"), listen="[::1]:80", pool=7, cpus=1.5, egress_allow=("10.1.2.0/24",)
    )
    assert load_config(file, pool=9, cpus=None) == msgspec.structs.replace(taken, pool=9)


def test_paths_are_of_the_directory_they_were_given_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config(None, data=Path("data")).data == tmp_path / "data"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nosuch = 1", "nosuch"),
        ("pool = ", "not TOML"),
        ('pool = "many"', "pool"),
        ("pool = -1", "pool"),
        ('listen = "nowhere"', "nowhere"),
        ('listen = "a:70000"', "70000"),
        ('dns = "[::1]:x"', "::1"),
        ('egress_allow = ["10.0.0.1/8"]', "10.0.0.1/8"),
        ('subnet = "nonsense"', "nonsense"),
        ('image = "mine"', "image"),
        ('domain = "localhost"', "localhost"),
        ('domain = "Sprites.example.com"', "Sprites"),
        ('front = "ftp"', "ftp"),
        ('front = "https:70000"', "70000"),
        ('front = "https://x"', "https://x"),
        ('trusted_proxies = ["10.0.0.1/8"]', "10.0.0.1/8"),
        ("wake_seconds = 0", "wake_seconds"),
    ],
)
def test_a_bad_setting_is_refused_and_named(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "node.toml"
    file.write_text(text)
    with pytest.raises(InvalidError, match=said):
        load_config(file)


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match=r"absent\.toml"):
        load_config(tmp_path / "absent.toml")


@pytest.mark.parametrize(
    ("front", "origin"),
    [
        (None, "http://x.sprites.localhost:7070"),
        ("http", "http://x.sprites.localhost"),
        ("https", "https://x.sprites.localhost"),
        ("https:8443", "https://x.sprites.localhost:8443"),
        ("http:443", "http://x.sprites.localhost:443"),
    ],
)
def test_what_is_in_front_shows_in_urls(front: str | None, origin: str) -> None:
    assert NodeConfig(front=front).site(7070).origin("x") == origin
