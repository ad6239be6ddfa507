"""Progress of a build: it moves with every package and never falls."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ballpoint.image.progress import Progress, Reporter

LINES = (
    "I: running apt-get update...", "I: downloading packages with apt...", "I: extracting archives...",
    "I: installing essential packages...", "I: installing remaining packages inside the chroot...",
    "I: cleaning package lists and apt cache...", "0 upgraded, 2 newly installed, 0 to remove and 0 not upgraded.",
    "Get:1 http://mirror.example/debian trixie/main amd64 a", "Unpacking a (1) ...", "Setting up a (1) ...", "noise",
    "",
)  # fmt: skip


@given(st.lists(st.sampled_from(LINES) | st.text(max_size=40)), st.floats(0, 1))
def test_it_never_falls_and_stays_in_bounds(lines: list[str], share: float) -> None:
    seen: list[Progress] = []
    reporter = Reporter(seen.append, share)
    for line in lines:
        reporter.line(line)
    fractions = [each.fraction for each in seen]
    assert fractions == sorted(fractions)
    assert all(0 <= each <= share for each in fractions)


def test_each_package_moves_it() -> None:
    seen: list[Progress] = []
    reporter = Reporter(seen.append, 0.5)
    for line in (
        "I: installing remaining packages inside the chroot...",
        "0 upgraded, 1 newly installed, 0 to remove and 0 not upgraded.",
        "Get:1 http://mirror.example/debian trixie/main amd64 a",
        "Unpacking a (1) ...",
        "Setting up a (1) ...",
        "I: cleaning package lists and apt cache...",
    ):
        reporter.line(line)
    fractions = [each.fraction for each in seen]
    assert [each.step for each in seen] == ["installing packages"] * 4 + ["cleaning up"]
    assert len(set(fractions)) == 4  # the last package ends where the next step begins
    assert fractions[-1] < 0.5
