"""The page at `/docs`: the OpenAPI document as one plain HTML page that needs no script and fetches nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape
from typing import Any

_METHODS = ("get", "post", "put", "patch", "delete")
_SCHEMA = "#/components/schemas/"


def render_docs(document: dict[str, Any]) -> str:
    """`document` (OpenAPI 3.1) as an HTML page: every operation, then every body it speaks of."""
    info = document["info"]
    groups: dict[str, list[tuple[str, str, dict[str, Any]]]] = {}
    for path, method, operation in _operations(document):
        groups.setdefault(operation["tags"][0], []).append((path, method, operation))
    schemas = document["components"]["schemas"]
    menu = "".join(
        f"<h2>{escape(tag)}</h2><ul>{''.join(_menu_line(*entry) for entry in entries)}</ul>"
        for tag, entries in groups.items()
    )
    operations = "".join(
        f"<h2>{escape(tag)}</h2>{''.join(_operation(*entry) for entry in entries)}" for tag, entries in groups.items()
    )
    bodies = "".join(_body(name, schema) for name, schema in sorted(schemas.items()))
    names = "".join(f'<li><a href="#body-{escape(name)}">{escape(name)}</a></li>' for name in sorted(schemas))
    return _PAGE.format(
        title=escape(info["title"]),
        version=escape(info["version"]),
        style=_STYLE,
        description=_prose(info["description"]),
        menu=f"{menu}<h2>Bodies</h2><ul>{names}</ul>",
        operations=operations,
        bodies=f"<h2>Bodies</h2>{bodies}",
    )


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method in _METHODS:
            if method in methods:
                yield path, method, methods[method]


def _menu_line(path: str, method: str, operation: dict[str, Any]) -> str:
    return f'<li><a href="#{escape(operation["operationId"])}">{_badge(method)} {_path(path)}</a></li>'


def _operation(path: str, method: str, operation: dict[str, Any]) -> str:
    parts = [
        f'<section id="{escape(operation["operationId"])}"><h3>{_badge(method)} {_path(path)}</h3>',
        _prose(operation["description"]),
    ]
    if parameters := operation.get("parameters"):
        rows = [
            (f"<code>{escape(one['name'])}</code> in {escape(one['in'])}", _type(one["schema"]), _note(one))
            for one in parameters
        ]
        parts.append(_table("Parameters", rows))
    if body := operation.get("requestBody"):
        parts.append(f"<p>Body: {_content(body['content'])}</p>")
    rows = [
        (f"<code>{escape(status)}</code>", _content(response.get("content", {})), _inline(response["description"]))
        for status, response in operation["responses"].items()
    ]
    parts.append(_table("Answers", rows))
    return "".join(parts) + "</section>"


def _body(name: str, schema: dict[str, Any]) -> str:
    required = schema.get("required", [])
    rows = [
        (
            f"<code>{escape(key)}</code>" + ("" if key in required else " <i>optional</i>"),
            _type(value),
            _note(value),
        )
        for key, value in schema.get("properties", {}).items()
    ]
    return (
        f'<section id="body-{escape(name)}"><h3>{escape(name)}</h3>'
        f"{_prose(schema.get('description', ''))}{_table('Keys', rows)}</section>"
    )


def _table(caption: str, rows: list[tuple[str, str, str]]) -> str:
    lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><caption>{escape(caption)}</caption><tbody>{lines}</tbody></table>"


def _content(content: dict[str, Any]) -> str:
    return ", ".join(
        f"<code>{escape(media)}</code> {_type(one['schema'])}" for media, one in content.items() if one.get("schema")
    )


def _type(schema: dict[str, Any]) -> str:
    """A schema in words, linked to the body it names."""
    if reference := schema.get("$ref"):
        name = escape(reference.removeprefix(_SCHEMA))
        return f'<a href="#body-{name}">{name}</a>'
    if choices := schema.get("anyOf"):
        return " or ".join(_type(choice) for choice in choices)
    if values := schema.get("enum"):
        return " or ".join(f"<code>{escape(repr(value))}</code>" for value in values)
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}"
    if schema.get("type") == "object":
        values = schema.get("additionalProperties")
        return f"object of {_type(values)}" if isinstance(values, dict) else "object"
    return escape(schema.get("format") or schema.get("type") or "anything")


def _note(thing: dict[str, Any]) -> str:
    """What is said of a key or parameter, and the value it has where it is left out."""
    default = thing.get("schema", thing).get("default")
    said = f"Default: <code>{escape(repr(default))}</code>." if default not in (None, "", False) else ""
    return " ".join(filter(None, (_inline(thing.get("description", "")), said)))


def _prose(text: str) -> str:
    return "".join(f"<p>{_inline(paragraph)}</p>" for paragraph in text.strip().split("\n\n") if paragraph)


def _inline(text: str) -> str:
    """Text with `code` as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _badge(method: str) -> str:
    return f'<b class="{method}">{method.upper()}</b>'


def _path(path: str) -> str:
    marked = re.sub(r"\{[^}]*\}", r"<var>\g<0></var>", escape(path))
    return f"<code>{marked}</code>"


_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5d6878; --line: #dde2e9; --page: #fdfdfc; --code: #f0f2f5;
  --link: #1f5fbf; --get: #2463b8; --post: #23803f; --put: #9a6410; --delete: #b3352c; }
@media (prefers-color-scheme: dark) { :root { --ink: #dfe4ea; --soft: #97a2b1; --line: #2c343f; --page: #12161b;
  --code: #1d232b; --link: #7fb0f5; --get: #7fb0f5; --post: #6cc788; --put: #ddae5c; --delete: #ee8b82; } }
* { box-sizing: border-box; }
html { scroll-padding-top: 1rem; }
body { margin: 0; color: var(--ink); background: var(--page); font: 16px/1.55 system-ui, sans-serif;
  display: grid; grid-template-columns: 20rem minmax(0, 52rem); gap: 3rem; }
nav { position: sticky; top: 0; height: 100vh; overflow: auto; padding: 1.5rem 1rem 2rem 1.5rem;
  border-right: 1px solid var(--line); font-size: .82rem; }
nav h2 { font-size: .75rem; text-transform: uppercase; letter-spacing: .08em; color: var(--soft); border: 0;
  margin: 1.4rem 0 .3rem; padding: 0; }
nav ul { list-style: none; margin: 0; padding: 0; }
nav a { display: block; padding: .15rem 0; color: inherit; text-decoration: none; overflow-wrap: anywhere; }
nav a:hover { color: var(--link); }
nav code { background: none; padding: 0; }
main { padding: 1.5rem 1.5rem 5rem 0; }
h1 { font-size: 1.9rem; margin: 0; } h1 small { font-size: 1rem; color: var(--soft); font-weight: normal; }
h2 { margin: 3rem 0 1rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line); }
h3 { margin: 2.2rem 0 .4rem; font-size: 1.05rem; } p { margin: .5rem 0; }
section:target > h3 { outline: 2px solid var(--link); outline-offset: .3rem; border-radius: 2px; }
a { color: var(--link); } i { color: var(--soft); font-size: .85em; }
code { font: .88em ui-monospace, monospace; background: var(--code); padding: .1em .3em; border-radius: 3px; }
var { font-style: normal; color: var(--soft); }
b { display: inline-block; min-width: 3.6em; font: 700 .75em ui-monospace, monospace; }
.get { color: var(--get); } .post { color: var(--post); } .put, .patch { color: var(--put); }
.delete { color: var(--delete); }
table { border-collapse: collapse; width: 100%; margin: .8rem 0; font-size: .9rem; }
caption { text-align: left; font-size: .75rem; text-transform: uppercase; letter-spacing: .08em; color: var(--soft); }
td { border-top: 1px solid var(--line); padding: .35rem .8rem .35rem 0; vertical-align: top; overflow-wrap: anywhere; }
td:first-child { width: 28%; } td:nth-child(2) { width: 27%; }
@media (max-width: 60rem) { body { display: block; } main { padding: 1rem 1.5rem 4rem; }
  nav { position: static; height: auto; border: 0; } }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} API</title><style>{style}</style></head>
<body>
<nav>{menu}</nav>
<main><h1>{title} <small>{version}</small></h1>{description}
<p>The same as a document for programs: <a href="/openapi.json">openapi.json</a></p>
{operations}{bodies}</main>
</body>
</html>
"""
