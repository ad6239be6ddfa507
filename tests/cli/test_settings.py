"""What the client remembers, and what it forgets."""

from __future__ import annotations

from pathlib import Path

import pytest

from ballpoint.cli.client import settings
from ballpoint.core.config import NodeConfig
from ballpoint.core.errors import InvalidError, UnauthorizedError
from tests.cli.command import ballpoint

HERE, THERE = "http://127.0.0.1:7070", "https://node.example"
FIRST, SECOND = "acme/o1/t1/v1", "corp/o2/t2/v2"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("SPRITES_API_URL", "SPRITE_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_what_is_remembered_is_selected_and_for_nobody_elses_eyes(home: Path) -> None:
    settings.remember(settings.selection(f"{HERE}/", f"{FIRST}\n"))
    assert settings.select(None) == settings.Selection(HERE, "acme", FIRST)
    settings.remember(settings.selection(HERE, SECOND))
    assert settings.select(None).token == SECOND
    assert settings.select("acme").token == FIRST
    assert {path.stat().st_mode & 0o777 for path in (home / ".sprites").iterdir()} == {0o600}
    assert (home / ".sprites").stat().st_mode & 0o777 == 0o700


def test_what_is_forgotten_is_that_token_and_nothing_else(home: Path) -> None:
    for url, token in ((THERE, FIRST), (HERE, SECOND), (HERE, FIRST)):
        settings.remember(settings.selection(url, token))
    assert settings.forget("acme/o1/t1/other") == []
    assert sorted(settings.forget(FIRST)) == [HERE, THERE]
    assert settings.forget(FIRST) == []
    with pytest.raises(UnauthorizedError):
        settings.select("corp")  # nothing is selected any more
    settings.remember(settings.selection(HERE, SECOND))
    assert settings.select(None).token == SECOND


def test_with_the_last_token_the_directory_goes(home: Path) -> None:
    settings.remember(settings.selection(HERE, FIRST))
    assert settings.forget(FIRST) == [HERE]
    assert list(home.iterdir()) == []


@pytest.mark.parametrize(
    ("listen", "url"),
    [("127.0.0.1:7070", HERE), ("0.0.0.0:7070", HERE), ("[::]:7070", "http://[::1]:7070"),
     ("[fd00::1]:80", "http://[fd00::1]:80"), ("node.example:80", "http://node.example:80")],
)  # fmt: skip
def test_where_a_node_is_found(listen: str, url: str) -> None:
    assert NodeConfig(listen=listen).url == url
    assert settings.selection(url, FIRST).url == url


def test_an_organization_of_another_node_is_chosen_by_url_or_alias(monkeypatch: pytest.MonkeyPatch) -> None:
    settings.remember(settings.selection(THERE, SECOND), alias="prod")
    settings.remember(settings.selection(HERE, FIRST))
    there, here = settings.Selection(THERE, "corp", SECOND), settings.Selection(HERE, "acme", FIRST)
    monkeypatch.setenv("SPRITES_API_URL", HERE)
    assert settings.select(None) == settings.select(f"{HERE}:acme") == here
    assert (
        settings.select("prod:corp") == settings.select(f"{THERE}:corp") == settings.select(f"{THERE}/:corp") == there
    )
    assert settings.selection("prod", SECOND) == there
    with pytest.raises(UnauthorizedError, match="no token for acme"):
        settings.select("prod:acme")


def test_an_alias_names_one_node_and_goes_with_it() -> None:
    settings.remember(settings.selection(THERE, SECOND), alias="prod")
    settings.remember(settings.selection(HERE, FIRST), alias="prod")
    assert settings.select("prod:acme").url == HERE
    settings.remember(settings.selection(HERE, SECOND))
    assert settings.select("prod:corp").url == HERE
    for token in (FIRST, SECOND):
        settings.forget(token)
    with pytest.raises(InvalidError, match="'prod'"):
        settings.select("prod:acme")


@pytest.mark.parametrize(
    "choice", [":acme", "prod:", "nosuch:acme", "ftp://127.0.0.1:acme", "http://127.0.0.1:80000:x"]
)
def test_a_bad_choice_is_refused(choice: str) -> None:
    settings.remember(settings.selection(HERE, FIRST))
    with pytest.raises(InvalidError):
        settings.select(choice)


def test_unset_says_what_selects_a_sprite_now(home: Path) -> None:
    """What a directory above selects stays, and is named."""

    def unset(directory: Path) -> str:
        done = ballpoint(directory, "use", "--unset")
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    below = home / "below"
    below.mkdir()
    (home / ".sprite").write_text('{"organization": "acme", "sprite": "above"}')
    (below / ".sprite").write_text('{"organization": "acme", "sprite": "here"}')
    stays = f"above stays selected here, by {home / '.sprite'}\n"
    assert [unset(below), unset(below)] == [stays, stays]
    assert not (below / ".sprite").exists()
    assert unset(home) == "no sprite is selected here any more\n"
    assert unset(home) == "no sprite was selected here\n"
