"""Loop devices: known by the file behind them, and gone with the last node."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ballpoint.core.errors import UnavailableError
from ballpoint.host import loop


def image(path: Path) -> Path:
    with path.open("wb") as file:
        file.truncate(1 << 20)
    return path


def exists(device: str) -> bool:
    return Path("/sys/block", Path(device).name).exists()


def test_an_owner_knows_its_devices_and_forgets_them_when_they_let_go(tmp_path: Path) -> None:
    first, second = image(tmp_path / "first"), image(tmp_path / "second")
    early, early_fd = loop.attach(first)
    owner = loop.Attachments()
    assert owner.find(first) == early == loop.find_by_backing(first)
    assert owner.find(second) is None
    late, late_fd = owner.attach(second)
    assert owner.find(second) == late == loop.find_by_backing(second)
    second.rename(tmp_path / "renamed")
    assert owner.find(second) is None
    assert owner.find(tmp_path / "renamed") == late
    holder = os.open(late, os.O_RDONLY | os.O_EXCL)
    with pytest.raises(UnavailableError):
        owner.wait_released(tmp_path / "renamed", 0.05)
    os.close(holder)
    os.close(early_fd)
    os.close(late_fd)
    for path in (first, tmp_path / "renamed"):
        owner.wait_released(path, 10)
        loop.wait_released(path, 10)
        assert owner.find(path) is None
        assert loop.find_by_backing(path) is None


def test_who_waits_for_a_device_to_let_go_waits_for_those_who_only_ask_whose_it_is(tmp_path: Path) -> None:
    """As another node does that starts: what was waited for is attached again at once, or refused as attached."""
    file = image(tmp_path / "image")
    owner = loop.Attachments()
    device, fd = owner.attach(file)
    asking = os.open(device, os.O_RDONLY)
    os.close(fd)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(owner.wait_released, file, 10)
        with pytest.raises(TimeoutError):
            waiting.result(0.2)
        os.close(asking)
        waiting.result()
    assert owner.find(file) is None
    device, fd = owner.attach(file)
    owner.wait_released(file, 0)  # nobody uses it, and there is no time to see it go
    os.close(fd)


def test_a_device_of_the_host_is_given_back_without_a_bound(tmp_path: Path) -> None:
    # Another worker takes the lowest number that is free: a higher one stays free once it is let go.
    lower, lower_fd = loop.attach(image(tmp_path / "lower"))
    device, fd = loop.attach(image(tmp_path / "image"))
    os.close(lower_fd)
    bdi = Path("/sys/block", Path(device).name, "bdi")
    loop.bound_dirty_data(device, None)
    most = (bdi / "max_bytes").read_text()
    loop.hold_devices("node", tmp_path)
    loop.bound_dirty_data(device, 1 << 24)
    assert (bdi / "strict_limit").read_text() == "1\n"
    assert int((bdi / "max_bytes").read_text()) < int(most)
    os.close(fd)
    loop.wait_released(tmp_path / "image", 10)
    assert loop.drop_devices("node", tmp_path)
    assert (bdi / "strict_limit").read_text() == "0\n"
    assert (bdi / "max_ratio").read_text() == "100\n"


def test_devices_that_came_go_with_the_last_holder_unless_somebody_uses_them(tmp_path: Path) -> None:
    before = {f"/dev/{path.name}" for path in Path("/sys/block").glob("loop*")}
    loop.hold_devices("first", tmp_path)
    backing = image(tmp_path / "image")
    attached: list[tuple[str, int]] = []
    while len([device for device, _ in attached if device not in before]) < 2:
        attached.append(loop.attach(backing, read_only=True))
    loop.hold_devices("second", tmp_path)
    (gone, gone_fd), (kept, kept_fd) = [each for each in attached if each[0] not in before]
    os.close(gone_fd)
    for device, fd in attached:
        if device in before:
            os.close(fd)  # for other workers: they take the lowest
    assert loop.drop_devices("second", tmp_path)
    assert exists(gone)
    assert loop.drop_devices("first", tmp_path)
    assert not exists(gone)
    assert exists(kept)
    assert all(exists(device) for device in before)
    os.close(kept_fd)
    assert not loop.drop_devices("first", tmp_path)
    assert exists(kept)
