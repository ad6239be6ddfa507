"""The page to log in to a sprite's URL: `auth.<domain>`, which the node sends here (node/urls)."""

from __future__ import annotations

from html import escape
from urllib.parse import parse_qs

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from ballpoint.api.guard import LOG_IN_PATH
from ballpoint.api.service import LogInService
from ballpoint.core.errors import BallpointError

_BODY_MAX = 16 * 1024
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Nobody else learns where its visitor wants to go. With `no-referrer` a browser would say `Origin: null` of what
    # the page's own form sends (Fetch, "append a request Origin header").
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def add_log_in_routes(app: FastAPI, log_ins: LogInService) -> None:
    """Give `app` the page, and what its form sends."""

    @app.get(LOG_IN_PATH, include_in_schema=False)
    async def show(to: str = "") -> Response:
        return _page(log_ins, to)

    @app.post(LOG_IN_PATH, include_in_schema=False)
    async def log_in(request: Request) -> Response:
        if not _from_own_page(request, log_ins.log_in_origin):
            return _page(
                log_ins, "", 403, "Another site's page sent this. Open the sprite's URL, and log in from there."
            )
        body = await request.body()
        try:
            form = parse_qs(body[:_BODY_MAX].decode("ascii"), max_num_fields=8)
        except ValueError:
            form = {}
        to, token = form.get("to", [""])[0], form.get("token", [""])[0]
        try:
            return RedirectResponse(await log_ins.log_in(token.strip(), to), 303, _HEADERS)
        except BallpointError as error:
            said = error.message[:1].upper() + error.message[1:]
            return _page(log_ins, to, error.status, f"{said}.")


def _from_own_page(request: Request, origin: str) -> bool:
    """Whether our own form sent this. Otherwise any page could log its visitor in with a token of its own."""
    site = request.headers.get("sec-fetch-site")
    given = request.headers.get("origin")
    return (site is None or site == "same-origin") and (given == origin or (given is None and site is not None))


def _page(log_ins: LogInService, to: str, status: int = 200, said: str = "") -> HTMLResponse:
    try:
        wanted = log_ins.wanted(to)
    except BallpointError as error:
        said = said or f"{error.message[:1].upper()}{error.message[1:]}. {error.hint or ''}"
        return _html(status if status != 200 else error.status, _alert(said), "'none'")
    form = _FORM.format(host=escape(wanted.partition("://")[2]), to=escape(to), said=_alert(said))
    # A form's target is checked again after each redirect (CSP3 6.1.8, as browsers do it), and this one's leads on.
    return _html(status, form, f"'self' {wanted}")


def _html(status: int, content: str, form_action: str) -> HTMLResponse:
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'; "
        f"form-action {form_action}"
    )
    headers = {**_HEADERS, "Content-Security-Policy": policy}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return HTMLResponse(_PAGE.format(style=_STYLE, content=content), status, headers)


def _alert(text: str) -> str:
    return f'<p class="said" role="alert">{escape(text)}</p>' if text else ""


_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5d6878; --line: #c9d0d9; --page: #fdfdfc; --link: #1f5fbf;
  --bad: #b3352c; }
@media (prefers-color-scheme: dark) { :root { --ink: #dfe4ea; --soft: #97a2b1; --line: #3a4552; --page: #12161b;
  --link: #7fb0f5; --bad: #ee8b82; } }
* { box-sizing: border-box; }
body { margin: 16vh auto 0; max-width: 26rem; padding: 0 1.5rem; color: var(--ink); background: var(--page);
  font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.35rem; margin: 0 0 .2rem; } p { margin: .4rem 0 1rem; } .host { overflow-wrap: anywhere; }
label { display: block; font-size: .9rem; margin-bottom: .25rem; } .soft { color: var(--soft); font-size: .85rem; }
input { width: 100%; padding: .55rem .7rem; font: inherit; color: inherit; background: transparent;
  border: 1px solid var(--line); border-radius: 6px; }
button { margin-top: 1rem; padding: .5rem 1.2rem; font: inherit; font-weight: 600; color: var(--page);
  background: var(--link); border: 0; border-radius: 6px; cursor: pointer; }
.said { color: var(--bad); }
"""

_FORM = """<h1>Log in</h1>
<p class="host">to <strong>{host}</strong></p>
{said}
<form method="post" action="/">
<input type="hidden" name="to" value="{to}">
<label for="token">Token</label>
<input id="token" name="token" type="password" autocomplete="current-password" required autofocus>
<p class="soft">A token of the sprite's organization, as <code>ballpoint token create</code> prints it.</p>
<button>Log in</button>
</form>"""

_PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Log in</title><style>{style}</style></head>
<body><main>{content}</main></body>
</html>
"""
