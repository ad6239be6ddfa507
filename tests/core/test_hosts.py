"""Which name below the domain means what: no two sprites have one, and nothing else can be read as one."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ballpoint.core.errors import InvalidError
from ballpoint.core.hosts import (
    API,
    AUTH,
    NOBODY,
    Place,
    Site,
    is_domain,
    meaning,
    organization_label,
    place,
    sprite_label,
)
from ballpoint.core.ids import NAME_MAX, RESERVED_NAMES, check_name

DOMAIN = "sprites.localhost"
SITE = Site(DOMAIN, "http", 7070)


def _is_name(text: str) -> bool:
    try:
        check_name(text)
    except InvalidError:
        return False
    return True


_SHORT = st.text("ab-", min_size=1, max_size=5)
NAMES = st.one_of(_SHORT, st.text("abcxyz019-", min_size=1, max_size=NAME_MAX)).filter(_is_name)
# As many kinds as a token may name (registry.split_token).
ORGANIZATIONS = st.one_of(
    st.text("ab-", min_size=1, max_size=4),
    st.text("abz29", min_size=12, max_size=15),
    st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="/"), min_size=1, max_size=63),
)


@given(st.tuples(NAMES, ORGANIZATIONS), st.tuples(NAMES, ORGANIZATIONS))
def test_two_sprites_have_two_labels(one: tuple[str, str], other: tuple[str, str]) -> None:
    assume(one != other)
    assert sprite_label(*one) != sprite_label(*other)


@given(NAMES, st.lists(ORGANIZATIONS, min_size=1, max_size=4, unique=True), st.data())
def test_a_label_means_its_own_sprite_whoever_else_there_is(name: str, orgs: list[str], data: st.DataObject) -> None:
    org = data.draw(st.sampled_from(orgs))
    label = sprite_label(name, org)
    assert len(label) <= 63
    assert place(f"{label}.{DOMAIN}", DOMAIN) == Place("sprite", label)
    assert meaning(label, orgs) == (name, org)
    assert label not in RESERVED_NAMES


@given(st.text("abz-", min_size=1, max_size=8), st.lists(ORGANIZATIONS, min_size=2, max_size=4, unique=True))
def test_a_label_means_only_what_has_it(label: str, orgs: list[str]) -> None:
    meant = meaning(label, orgs)
    assert meant is None or sprite_label(*meant) == label


@given(NAMES, ORGANIZATIONS)
def test_a_short_host_works_for_one_organization(name: str, org: str) -> None:
    assume(not name.endswith(f"-{organization_label(org)}"))
    assert meaning(name, [org]) == (name, org)


@given(ORGANIZATIONS)
def test_what_stands_for_an_organization_has_no_hyphen(org: str) -> None:
    label = organization_label(org)
    assert label.isascii()
    assert label.isalnum()
    assert label == label.lower()
    assert len(label) <= 14


@pytest.mark.parametrize(
    ("host", "where"),
    [
        ("web-acme.sprites.localhost", Place("sprite", "web-acme")),
        ("WEB-Acme.SPRITES.localhost:7070", Place("sprite", "web-acme")),
        ("web-acme.sprites.localhost.", Place("sprite", "web-acme")),
        ("web-acme.sprites.localhost.:80", Place("sprite", "web-acme")),
        ("auth.sprites.localhost", AUTH),
        ("AUTH.sprites.localhost.:1", AUTH),
        ("api.sprites.localhost", API),
        ("www.sprites.localhost", API),
        ("sprites.localhost", API),
        ("localhost:7070", API),
        ("", API),
        ("127.0.0.1:7070", API),
        ("[::1]:7070", API),
        ("evil.example", API),
        ("web-acme.sprites.localhost.evil.example", API),
        ("web-acmesprites.localhost", API),
        ("a.b.sprites.localhost", NOBODY),
        (".sprites.localhost", NOBODY),
        ("-a.sprites.localhost", NOBODY),
        ("a-.sprites.localhost", NOBODY),
        ("a_b.sprites.localhost", NOBODY),
        ("x" * 64 + ".sprites.localhost", NOBODY),
    ],
)
def test_hosts(host: str, where: Place) -> None:
    assert place(host, DOMAIN) == where


@given(st.text())
def test_a_name_beyond_ascii_is_no_sprites(text: str) -> None:
    assume(not text.isascii())
    assert place(f"{text}.{DOMAIN}", DOMAIN) == API
    assert place(f"web-acme.{DOMAIN}{text}", DOMAIN) == API


@pytest.mark.parametrize("good", ["sprites.localhost", "a.b", "sprites.example.com", "x-1.example.co"])
def test_domains(good: str) -> None:
    assert is_domain(good)


@pytest.mark.parametrize(
    "bad", ["", "localhost", "Sprites.localhost", "a..b", ".a.b", "a.b.", "10.0.0.1", "a b.c", "a_.b"]
)
def test_what_is_no_domain(bad: str) -> None:
    assert not is_domain(bad)


# ---- where a browser wants to go ----

_URL = st.one_of(
    st.text(),
    st.builds(
        lambda start, host, path: start + host + path,
        st.sampled_from(["http://", "https://", "HTTP://", "//", "http:/", "http:\\\\", "javascript:", " http://", ""]),
        st.one_of(
            st.just("web-acme.sprites.localhost:7070"),
            st.text("webacme-.@:#?/\\%07sprites", max_size=12).map(lambda text: f"{text}.sprites.localhost:7070"),
            st.text("webacme-.@:#?/\\%07sprites", max_size=12).map(lambda text: f"web.sprites.localhost:7070{text}"),
        ),
        st.text("/\\?#@:.%a\t\r\n \xa0", max_size=8),
    ),
)


@given(_URL)
def test_whatever_url_is_given_only_a_sprites_is_taken(url: str) -> None:
    read = SITE.read(url)
    if read is None:
        return
    label, path = read
    parts = urlsplit(url)
    assert (parts.scheme, parts.netloc) == ("http", f"{label}.sprites.localhost:7070")
    assert parts.username is None
    assert path.startswith("/")
    assert all("!" <= each <= "~" for each in path)
    assert url in (SITE.origin(label) + path, SITE.origin(label))


@given(NAMES, ORGANIZATIONS, st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=30))
def test_every_url_of_a_sprite_is_taken(name: str, org: str, rest: str) -> None:
    label = sprite_label(name, org)
    assert SITE.read(f"{SITE.origin(label)}/{rest}") == (label, f"/{rest}")


def test_ports_show_where_they_are_not_the_usual() -> None:
    assert Site("a.b", "https", 443).origin("x") == "https://x.a.b"
    assert Site("a.b", "http", 80).origin("x") == "http://x.a.b"
    assert Site("a.b", "http", 443).origin("x") == "http://x.a.b:443"
    assert Site("a.b", "https", 8443).read("https://x.a.b/") is None
