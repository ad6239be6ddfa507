"""Sprites' URLs in a real browser: logging in and out, waking, and what another sprite's page can do."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from selenium.common.exceptions import JavascriptException, WebDriverException
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

from ballpoint.core import ids
from tests.node import site
from tests.node.test_urls import ask, auth_host, bearer, host_of
from tests.support.nodes import TestNode
from tests.support.waiting import eventually

pytestmark = pytest.mark.node

_SECONDS = 60.0
OURS = "ballpoint"
# Only names below localhost lead anywhere, by the browser's own rule for them: neither a proxy nor a resolver is asked.
_OPTIONS = [
    "--headless",
    "--no-sandbox",  # which Chromium does not have as root
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE *.localhost",
]


def program(*names: str) -> str:
    """The first of them that this host has; fails where it has none."""
    found = next((path for path in map(shutil.which, names) if path), None)
    if found is None:
        pytest.fail(f"this host has no {' or '.join(names)}: CONTRIBUTING.md says where it comes from", pytrace=False)
    return found


class Browser:
    """A person's browser."""

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver

    def open(self, url: str) -> None:
        """Go there as by the address bar, and wait until the page is there."""
        self.driver.get(url)

    @property
    def url(self) -> str:
        return self.driver.current_url

    @property
    def host(self) -> str:
        return urlsplit(self.url).netloc

    def texts(self, selector: str) -> list[str]:
        """What one can read in the elements that match, all of one page."""
        found = self.run("return Array.from(document.querySelectorAll(arguments[0]), each => each.innerText)", selector)
        return [str(each) for each in found]

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script of the page returns; a promise is waited for."""
        return self.driver.execute_script(script, *arguments)

    def enter(self, token: str) -> None:
        """Fill in the page to log in, and send it."""
        self.driver.find_element(By.NAME, "token").send_keys(token)
        self.driver.find_element(By.TAG_NAME, "button").click()

    def send_form(self, url: str, fields: dict[str, str]) -> None:
        """Have the present page send a form."""
        self.run(
            "const form = document.createElement('form'); form.method = 'post'; form.action = arguments[0];"
            "for (const [name, value] of Object.entries(arguments[1])) {"
            "  const field = document.createElement('input');"
            "  field.name = name; field.value = value; form.append(field)"
            "} document.body.append(form); form.submit()",
            url,
            fields,
        )

    def log_in(self, url: str, token: str) -> None:
        """Open a URL, and log in where that is asked for."""
        self.open(url)
        assert urlsplit(self.url).netloc.startswith("auth.")
        self.enter(token)
        eventually(lambda: self.url == url)

    def cookies(self) -> dict[tuple[str, str], dict[str, Any]]:
        """All that it has, by domain (a host's own has no dot before it) and name."""
        had = self.driver.execute_cdp_cmd("Storage.getCookies", {})["cookies"]
        return {(each["domain"], each["name"]): each for each in had}

    def forget(self) -> None:
        """Drop all cookies."""
        self.driver.execute_cdp_cmd("Storage.clearCookies", {})

    def seen(self) -> Any:
        """What the server of the page says of a request by the page."""
        return self.run("return fetch('/seen').then(answer => answer.json())")

    def framed(self, url: str, read: Callable[[], Any]) -> Any:
        """What `read` finds in a frame of the present page that shows `url`."""
        self.run(
            "return new Promise(done => { const frame = document.createElement('iframe');"
            "frame.onload = () => done(); frame.src = arguments[0]; document.body.replaceChildren(frame) })",
            url,
        )
        self.driver.switch_to.frame(0)
        try:
            return read()
        finally:
            self.driver.switch_to.default_content()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    options = ChromeOptions()
    options.binary_location = program("chromium", "google-chrome")
    for option in _OPTIONS:
        options.add_argument(option)
    home = str(tmp_path_factory.mktemp("home"))  # it leaves something in both
    environment = {**os.environ, "HOME": home, "TMPDIR": home}
    service = Service(program("chromedriver"), env=environment, log_output=f"{home}/chromedriver.log")
    driver = Chrome(options, service)
    driver.set_page_load_timeout(_SECONDS)
    driver.set_script_timeout(_SECONDS)
    try:
        yield Browser(driver)
    finally:
        driver.quit()


@pytest.fixture
def browser(chromium: Browser) -> Browser:
    """The browser, which knows nobody yet."""
    chromium.forget()
    chromium.open("about:blank")
    return chromium


class App:
    """A sprite with an application whose URL asks for a log-in."""

    def __init__(self, node: TestNode) -> None:
        self.node = node
        self.name = f"b-{ids.new_instance_id()}"
        node.client().create_sprite(self.name)
        self.host = host_of(node, self.name)
        self.url = f"http://{self.host}/"
        body = {"cmd": "python3", "args": ["-c", Path(site.__file__).read_text(), "9000"], "http_port": 9000}
        made = node.api("PUT", f"/v1/sprites/{self.name}/services/web?duration=0s", json=body)
        assert made.status_code == 200, made.text
        eventually(lambda: ask(node, self.host, bearer(node.token)).status == 200)

    @property
    def domain(self) -> str:
        """The domain of a cookie for this host alone."""
        return self.host.partition(":")[0]

    @property
    def status(self) -> str:
        return str(self.node.api("GET", f"/v1/sprites/{self.name}").json()["status"])

    @property
    def posts(self) -> int:
        """How many times something was posted to its server."""
        return int(json.loads(ask(self.node, self.host, bearer(self.node.token), target="/seen").body)["posts"])

    def go_cold(self) -> None:
        assert self.node.api("POST", f"/v1/sprites/{self.name}/sleep").json()["status"] == "cold"


@pytest.fixture(scope="module")
def app(node: TestNode) -> Iterator[App]:
    yield from _made(node)


@pytest.fixture(scope="module")
def other(node: TestNode) -> Iterator[App]:
    yield from _made(node)


def _made(node: TestNode) -> Iterator[App]:
    made = App(node)
    yield made
    assert node.api("DELETE", f"/v1/sprites/{made.name}").status_code == 204


def asks_to_log_in(browser: Browser, node: TestNode, app: App) -> bool:
    return browser.host == auth_host(node) and browser.texts("strong") == [app.host]


TALK = """
return new Promise((done, failed) => {
    const came = [], socket = new WebSocket(arguments[0]);
    socket.onopen = () => socket.send('hello');
    socket.onmessage = event => { if (came.push(event.data) == 2) { socket.close(); done(came) } };
    socket.onerror = () => failed(new Error('no connection'));
})"""


# ---- logging in and out ----


def test_a_person_logs_in(browser: Browser, node: TestNode, app: App) -> None:
    wanted = f"{app.url}a//b?c=d"
    browser.open(wanted)
    assert asks_to_log_in(browser, node, app)
    assert browser.texts("[role=alert]") == []

    browser.enter("nonsense")
    eventually(lambda: any(browser.texts("[role=alert]")))
    assert asks_to_log_in(browser, node, app)
    assert browser.cookies() == {}

    browser.enter(node.token)
    eventually(lambda: browser.url == wanted)
    assert browser.texts("h1") == [app.host]


def test_the_log_in_is_seen_by_the_browser_alone(browser: Browser, node: TestNode, app: App) -> None:
    browser.log_in(app.url, node.token)
    had = browser.cookies()
    assert set(had) == {(app.domain, OURS), (app.domain, "its")}
    ours = had[app.domain, OURS]
    assert (ours["httpOnly"], ours["sameSite"], ours["path"]) == (True, "Lax", "/")
    assert browser.run("return document.cookie") == "its=own"
    fields = dict(browser.seen()["fields"])
    assert fields["Cookie"] == "its=own"
    assert "Authorization" not in fields
    assert ours["value"] not in json.dumps(fields)


def test_logging_out(browser: Browser, node: TestNode, app: App) -> None:
    browser.log_in(app.url, node.token)
    log_in = browser.cookies()[app.domain, OURS]["value"]
    assert browser.run("return fetch('/.ballpoint/log-out', {method: 'POST'}).then(answer => answer.status)") == 204
    assert set(browser.cookies()) == {(app.domain, "its")}
    browser.open(app.url)
    assert asks_to_log_in(browser, node, app)
    # Who kept the cookie has nothing.
    assert ask(node, app.host, f"Cookie: {OURS}={log_in}").status == 401


# ---- waking, and what passes ----


def test_opening_its_page_wakes_a_cold_sprite(browser: Browser, node: TestNode, app: App) -> None:
    app.go_cold()
    browser.open(app.url)
    assert asks_to_log_in(browser, node, app)
    assert app.status == "cold"  # whoever is not logged in wakes nobody
    browser.enter(node.token)
    eventually(lambda: browser.texts("h1") == [app.host])
    assert app.status == "running"

    browser.open("about:blank")
    app.go_cold()
    browser.open(app.url)
    assert browser.texts("h1") == [app.host]
    assert app.status == "running"


def test_a_web_socket_and_a_cookie_of_its_own(browser: Browser, node: TestNode, app: App) -> None:
    browser.log_in(app.url, node.token)
    browser.run("document.cookie = 'more=mine'")
    assert browser.run(TALK, f"ws://{app.host}/ws") == ["its=own; more=mine", "hello"]


# ---- another sprite's page ----


def test_another_sprites_page_reads_nothing(browser: Browser, node: TestNode, app: App, other: App) -> None:
    browser.log_in(app.url, node.token)
    browser.run("document.cookie = 'secret=mine'; localStorage.setItem('secret', 'mine')")
    browser.log_in(other.url, node.token)
    assert {domain for domain, name in browser.cookies() if name == OURS} == {app.domain, other.domain}
    assert browser.run("return document.cookie") == "its=own"
    assert dict(browser.seen()["fields"])["Cookie"] == "its=own"
    assert browser.run("return localStorage.getItem('secret')") is None

    get = "return fetch(arguments[0], {credentials: 'include'}).then(answer => answer.text())"
    assert other.host in browser.run(get, other.url)
    with pytest.raises(JavascriptException, match="Failed to fetch"):
        browser.run(get, app.url)
    blind = "return fetch(arguments[0], {credentials: 'include', mode: 'no-cors'})"
    assert browser.run(f"{blind}.then(async answer => [answer.type, await answer.text()])", app.url) == ["opaque", ""]

    look = "return [frames[0].location.href, frames[0].document.body.innerText]"
    assert browser.framed(other.url, lambda: browser.texts("h1")) == [other.host]
    assert browser.run(look) == [other.url, other.host]
    assert browser.framed(app.url, lambda: browser.texts("h1")) == [app.host]  # its visitor sees it
    with pytest.raises(WebDriverException, match="cross-origin frame"):
        browser.run(look)


def test_another_sprites_page_changes_nothing(browser: Browser, node: TestNode, app: App, other: App) -> None:
    browser.log_in(app.url, node.token)
    post = "return fetch(arguments[0], {method: 'POST', mode: 'no-cors', credentials: 'include'}).then(() => 'sent')"
    before = app.posts
    assert browser.run(post, app.url) == "sent"
    assert browser.run(TALK, f"ws://{app.host}/ws") == ["its=own", "hello"]
    assert app.posts == before + 1

    browser.log_in(other.url, node.token)
    assert browser.run(post, app.url) == "sent"
    assert browser.run(post, f"{app.url}.ballpoint/log-out") == "sent"
    with pytest.raises(JavascriptException, match="no connection"):
        browser.run(TALK, f"ws://{app.host}/ws")
    assert app.posts == before + 1

    # It can set cookies for all hosts of the domain; that locks nobody out.
    browser.run("document.cookie = 'ballpoint=forged; path=/; domain=' + arguments[0]", app.domain.partition(".")[2])
    assert (f".{app.domain.partition('.')[2]}", OURS) in browser.cookies()
    browser.open(app.url)
    assert browser.texts("h1") == [app.host]
    assert OURS not in dict(browser.seen()["fields"])["Cookie"]


def test_no_other_page_frames_the_page_to_log_in_or_sends_its_form(
    browser: Browser, node: TestNode, app: App, other: App
) -> None:
    browser.log_in(other.url, node.token)
    known = browser.cookies()

    def where() -> str:
        return str(browser.run("return location.href"))

    assert browser.framed(other.url, where) == other.url
    assert browser.framed(app.url, where).startswith("chrome-error:")  # the browser says that it may not show this

    browser.send_form(f"http://{auth_host(node)}/", {"token": node.token, "to": app.url})
    eventually(lambda: any(browser.texts("[role=alert]")))
    assert browser.host == auth_host(node)
    assert browser.cookies() == known


def test_a_page_that_keeps_its_address_to_itself_sends_forms_to_its_own_host(
    browser: Browser, node: TestNode, app: App, other: App
) -> None:
    """Browsers say Origin: null of them, as they do of such a page of another host."""
    before = app.posts
    for sprite in (app, other):
        browser.log_in(sprite.url, node.token)
        browser.run(
            "const policy = document.createElement('meta'); policy.name = 'referrer'; policy.content = 'no-referrer';"
            "document.head.append(policy)"
        )
        browser.send_form(f"{app.url}form", {"some": "thing"})
        eventually(lambda: browser.url == f"{app.url}form")
        assert (browser.texts("body") == ["taken"]) is (sprite is app)
        assert app.posts == before + 1
