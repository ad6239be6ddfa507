"""What a host says of its package sources, and what of that may leave it."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ballpoint.image.mirrors import Archives, Mirrors, archives_in, host_mirrors

DEBIAN = 'ID=debian\nVERSION_ID="12"\n'


def host(root: Path, files: dict[str, str], environment: dict[str, str] | None = None) -> Mirrors:
    for path, text in files.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return host_mirrors(root=root, environment=environment or {})


def test_a_bare_host_has_no_settings(tmp_path: Path) -> None:
    assert host(tmp_path, {}) == Mirrors()


def test_sources_in_both_styles() -> None:
    one_line = """
        # deb http://commented.example/debian trixie main
        deb [arch=amd64 signed-by=/x.gpg] https://mirror.example/debian/ bookworm main contrib # near
        deb-src http://source.example/debian bookworm main
        deb http://mirror.example/debian-security bookworm-security main
    """
    deb822 = """
# a comment
Types: deb deb-src
URIs: https://mirror.example/debian
Suites: bookworm
  bookworm-updates
Components:
 main

types: deb
uris: http://mirror.example/debian-security
suites: bookworm-security
components: main
"""
    wanted = Archives("https://mirror.example/debian", "http://mirror.example/debian-security")
    assert archives_in(one_line) == wanted
    assert archives_in(deb822) == wanted


@pytest.mark.parametrize(
    "line",
    [
        "deb https://vendor.example/packages stable main",
        "deb file:///srv/debian bookworm main",
        "deb cdrom:[Debian]/debian bookworm main",
        "deb https://user:secret@mirror.example/debian bookworm main",
        "deb http://mirror.example/debian bookworm contrib",
        "deb http://security.example/debian-security bookworm-security main",
        "Types: deb\nURIs: http://mirror.example/debian\nComponents: main\nEnabled: no",
        "Types: deb-src\nURIs: http://mirror.example/debian\nComponents: main",
    ],
)
def test_sources_that_no_sprite_could_use(line: str) -> None:
    assert archives_in(line) is None


def test_another_distribution_has_no_debian_archive(tmp_path: Path) -> None:
    files = {
        "etc/os-release": "ID=ubuntu\nID_LIKE=debian\n",
        "etc/apt/sources.list": "deb http://m.example/debian a main",
    }
    assert host(tmp_path, files).archives is None


def test_a_mirror_named_by_the_operator_is_the_only_archive(tmp_path: Path) -> None:
    assert host_mirrors("http://m.example/debian/", tmp_path, {}).archives == Archives("http://m.example/debian")


def test_apt_proxies_in_apts_own_syntax(tmp_path: Path) -> None:
    text = """
    Acquire { http { Proxy "http://proxy.example:3142"; Proxy::near.example "DIRECT"; }; };
    // Acquire::https::Proxy "http://commented.example";
    Acquire::https::Proxy "http://user:secret@proxy.example";
    Acquire::http::Proxy-Auto-Detect "/usr/bin/on-this-host";
    Acquire::https::CAInfo "/etc/on-this-host.pem";
    """
    found = host(tmp_path, {"etc/apt/apt.conf.d/50proxy": text}).apt
    assert set(found) == {
        'Acquire::http::Proxy "http://proxy.example:3142"',
        'Acquire::http::Proxy::near.example "DIRECT"',
    }


def test_pip_settings_without_those_of_this_host(tmp_path: Path) -> None:
    text = """
[global]
index-url = https://pypi.example/simple
extra-index-url =
    file:///opt/simple
    https://second.example/simple
    https://token@third.example/simple
find-links = /opt/wheels
cert = /etc/ssl/mine.pem
timeout = 60
"""
    assert host(tmp_path, {"etc/pip.conf": text}, {"PIP_DEFAULT_TIMEOUT": "90", "PIP_CERT": "/x"}).pip == {
        "index-url": "https://pypi.example/simple",
        "extra-index-url": "https://second.example/simple",
        "timeout": "90",
    }


def test_npm_settings_without_secrets(tmp_path: Path) -> None:
    text = """
registry=https://npm.example/
//npm.example/:_authToken=secret
https-proxy="http://user:secret@proxy.example"
proxy=http://proxy.example:3128
cafile=/etc/ssl/mine.pem
fetch-retries=${RETRIES}
"""
    assert host(tmp_path, {"root/.npmrc": text}, {"npm_config_strict_ssl": "false"}).npm == {
        "registry": "https://npm.example/",
        "proxy": "http://proxy.example:3128",
        "strict-ssl": "false",
    }


@pytest.mark.parametrize("name", ["pip.conf", "xdg/pip/pip.conf"])
def test_a_malformed_file_counts_as_empty(tmp_path: Path, name: str) -> None:
    assert host(tmp_path, {f"etc/{name}": "no section\n\0[["}).pip == {}


@pytest.mark.parametrize("address", ["localhost:3142", "127.0.0.1", "[::1]:80", "cache.localhost"])
def test_the_hosts_loopback_is_no_setting_for_elsewhere(address: str) -> None:
    url = f"http://{address}/debian"
    everything = Mirrors(
        archives=Archives(url), apt=(f'Acquire::http::Proxy "{url}"', 'Acquire::http::Proxy::x "DIRECT"'),
        pip={"index-url": url, "extra-index-url": f"{url} http://far.example", "trusted-host": "x"},
        npm={"registry": url},
    )  # fmt: skip
    assert everything.elsewhere() == Mirrors(
        apt=('Acquire::http::Proxy::x "DIRECT"',), pip={"extra-index-url": "http://far.example", "trusted-host": "x"}
    )
    far = Archives("http://far.example/debian", url)
    assert Mirrors(archives=far).elsewhere() == Mirrors(archives=Archives("http://far.example/debian"))


def test_what_is_written_is_read_again() -> None:
    archives = Archives("https://a.example/debian", "https://a.example/debian-security")
    assert archives_in(archives.sources("trixie").decode()) == archives


@given(
    st.lists(
        st.sampled_from(
            [
                "deb ",
                "Types: deb",
                "\nURIs: ",
                "Components: main",
                "http://",
                "file://",
                "u:p@",
                "h/debian",
                " a main",
                "\n",
                " ",
                "[",
            ]
        )
        | st.text(max_size=5),
        max_size=20,
    )
)
def test_no_text_gives_an_archive_that_is_private(parts: list[str]) -> None:
    found = archives_in("".join(parts))
    for uri in () if found is None else (found.debian, found.security or found.debian):
        assert urlsplit(uri).scheme in ("http", "https")
        assert "@" not in urlsplit(uri).netloc
        assert not any(each.isspace() for each in uri)
