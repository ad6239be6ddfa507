"""Every page that explains a concept, and the README, shows it by examples that are run, and nothing that is not run without a reason."""

from __future__ import annotations

import pytest

from tests.docs.pages import blocks, says, steps, unaccounted
from tests.documents import DOCS, README, ROOT

CONCEPTS = (
    "agent", "checkpoints", "clients", "edge", "files", "inside", "lifecycle", "ports", "services", "sessions", "tasks", "tls", "urls",
)  # fmt: skip
# What is no concept of a user's: how it is made, run, measured, kept, and what it is made of.
OTHERS = (
    "api", "architecture", "bench", "commands", "configuration", "durability", "network", "operating", "performance",
    "registry", "security", "specification", "standard-image", "store", "volume-format", "volume-layout",
)  # fmt: skip

# Every page that is run.
RUN = {"README": README, **{name: DOCS / f"{name}.md" for name in CONCEPTS}}


def test_every_page_is_one_or_the_other() -> None:
    assert sorted([*CONCEPTS, *OTHERS]) == sorted(page.stem for page in DOCS.glob("*.md"))


@pytest.mark.parametrize("name", RUN)
def test_a_concept_has_examples_that_are_run(name: str) -> None:
    text = RUN[name].read_text()
    assert unaccounted(text, ROOT) == []
    shown = [step for step in steps(text) if step.shown is not None]
    assert shown, f"{RUN[name]} has no example that is run and shows what is printed"


PAGE = """\
# A page

```console
$ one
1
  ...
work$ two \\
> and a half   # a remark
$ three
```

<!-- not run: it has no end -->
```sh
never
```

<!-- file: notes -->
```
kept
```

```python
print("four")
```

```output
four
```
"""


def test_what_a_page_shows_is_read() -> None:
    read = [(step.kind, step.text, step.sprite, step.shown, step.name) for step in steps(PAGE)]
    assert read == [
        ("console", "one", None, "1\n  ...\n", ""),
        ("console", "two \\\nand a half   # a remark", "work", None, ""),
        ("console", "three", None, None, ""),
        ("file", "kept\n", None, None, "notes"),
        ("python", 'print("four")\n', None, "four\n", ""),
    ]
    assert unaccounted(PAGE, ROOT) == []


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("```sh\nx\n```\n", "'sh'"),
        ("```\nx\n```\n", "''"),
        ("<!-- run by: tests/no_such.py -->\n```js\nx\n```\n", "tests/no_such.py is not there"),
        ("<!-- not run: above what is above -->\n\n```js\nx\n```\n", "'js'"),
    ],
)
def test_what_is_not_run_needs_a_reason(text: str, wrong: str) -> None:
    (found,) = unaccounted(text, ROOT)
    assert wrong in found


@pytest.mark.parametrize(
    "text",
    ["words\n\n    $ indented\n", "```console\n$ no end\n", "```console\nno command\n```\n", "```output\nx\n```\n"],
)
def test_what_is_no_such_page_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="line"):
        steps(text)


def test_a_list_is_no_indented_block() -> None:
    assert blocks("- one\n  goes on\n\n  and on\n") == []


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("a b\n", "a b\n", True),
        ("a b\n", "a   b\n", True),
        ("a b\n", "a b", True),
        ("a b\n", "a b c\n", False),
        ("a b\n", "a b\nc\n", False),
        ("a b\n", "a b  \n\n", True),
        ("a ... c\n", "a 17 c\n", True),
        ("a ... c\n", "a\nc\n", False),
        ("...\nc\n", "a\nb\nc\n", True),
        ("a\n...\n", "a\n", True),
        ("a\n...\n", "b\na\n", False),
        ("at 2026-11-29 15:40:12 it\n", "at 2027-01-01 00:00:00 it\n", True),
        ('"2026-11-29T15:40:12.123Z"\n', '"2027-01-01T00:00:00.5Z"\n', True),
        ("at 2026-11-29 15:40:12 it\n", "at noon it\n", False),
        ("a.c\n", "abc\n", False),
        ("nothing\n", "", False),
    ],
)
def test_what_stands_for_what(shown: str, printed: str, same: bool) -> None:
    assert says(shown, printed) is same
