"""What sessions wrote is kept byte for byte, within its bound, and found again by the next agent."""

from __future__ import annotations

import os
import random
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from ballpoint.agent.sessions.journal import STREAMS, Journal, Journals
from ballpoint.agent.sessions.session import STDERR, STDOUT

MOST = 256 << 10


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    yield read, write
    for fd in (read, write):
        os.close(fd)


def opened(folder: Path, most: int = MOST) -> Journals:
    return Journals(os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC), most)


def all_of(journal: Journal, stream: int) -> bytes:
    found, at = b"", journal.start(stream)
    while at < journal.end(stream):
        data = journal.read(stream, at, 1 << 16)
        assert data
        found += data
        at += len(data)
    return found


def test_what_a_pipe_holds_is_moved(tmp_path: Path, pipe: tuple[int, int]) -> None:
    journal = opened(tmp_path).create("s1-1")
    os.write(pipe[1], b"first")
    assert journal.take(STDOUT, pipe[0], 3) == b"fir"
    assert journal.take(STDOUT, pipe[0], 100) == b"st"
    with pytest.raises(BlockingIOError):
        journal.take(STDOUT, pipe[0], 100)
    assert all_of(journal, STDOUT) == b"first"
    assert journal.end(STDERR) == 0
    os.close(pipe[1])
    assert journal.take(STDOUT, pipe[0], 100) == b""
    os.dup2(pipe[0], pipe[1])


def test_a_session_that_wrote_nothing_has_no_file(tmp_path: Path) -> None:
    journals = opened(tmp_path)
    journals.end(journals.create("s1-1"), None)
    assert list(tmp_path.iterdir()) == []


def test_without_a_directory_it_counts_and_keeps_nothing(pipe: tuple[int, int]) -> None:
    journals = Journals(None, MOST)
    journal = journals.create("s1-1")
    os.write(pipe[1], b"first")
    assert journal.take(STDOUT, pipe[0], 100) == b"first"
    journal.add(STDERR, b"abc")
    assert (journal.start(STDOUT), journal.end(STDOUT)) == (5, 5)
    assert (journal.start(STDERR), journal.end(STDERR)) == (3, 3)
    journals.end(journal, {"code": 1})
    assert journals.readable(journal)
    assert journals.recover() == {}


def test_files_of_nobody_are_removed(tmp_path: Path) -> None:
    for name in ("s1-1.1", "s1-1.2", "s2-2.x", "strange", "s3-3.x"):
        (tmp_path / name).write_bytes(b"{" if name.endswith(".x") else b"data")
    (tmp_path / "s3-3.x").write_bytes(b'{"code": 3}')
    assert opened(tmp_path).recover() == {"s3-3": {"code": 3}}
    assert [path.name for path in tmp_path.iterdir()] == ["s3-3.x"]


def test_a_noisy_session_takes_no_room_of_a_quiet_one(tmp_path: Path) -> None:
    journals = opened(tmp_path)
    quiet, noisy = journals.create("s1-1"), journals.create("s2-2")
    quiet.add(STDOUT, b"quiet" * 4000)
    for _ in range(64):
        noisy.add(STDOUT, bytes(16384))
    assert all_of(quiet, STDOUT) == b"quiet" * 4000
    assert quiet.start(STDOUT) == 0 < noisy.start(STDOUT)


@pytest.mark.host
def test_on_a_full_disk_output_is_counted_and_what_fits_again_is_kept(root: None, tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(tmp_path)], check=True)
    journals = opened(tmp_path, 64 << 20)
    try:
        ended, journal = journals.create("s1-1"), journals.create("s2-2")
        ended.add(STDOUT, bytes(16384))
        journals.end(ended, None)
        written = b""
        for number in range(40):
            piece = bytes([number]) * 16384
            written += piece
            journal.add(STDOUT, piece)
            assert journal.end(STDOUT) == len(written)
            assert all_of(journal, STDOUT) == written[journal.start(STDOUT) :]
        assert 0 < journal.start(STDOUT) < len(written)
        assert not journals.readable(ended)
        again = opened(tmp_path, 64 << 20)
        kept = again.open("s2-2")
        assert (kept.start(STDOUT), kept.end(STDOUT)) == (journal.start(STDOUT), len(written))
        assert all_of(kept, STDOUT) == written[kept.start(STDOUT) :]
        os.close(kept.streams[STDOUT].fd)
        os.close(again._directory or -1)
    finally:
        for stream in journal.streams.values():
            if stream.fd >= 0:
                os.close(stream.fd)
        os.close(journals._directory or -1)
        subprocess.run(["umount", str(tmp_path)], check=True)


class Model(RuleBasedStateMachine):
    """Sessions that write, end and are read, over agents that come and go, beside all that they ever wrote."""

    sessions = Bundle("sessions")

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.journals = opened(Path(self.folder.name))
        self.written: dict[str, dict[int, bytes]] = {}
        self.running: dict[str, Journal] = {}
        self.noted: dict[str, Journal] = {}
        self.fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    @rule(target=sessions)
    def start(self) -> str:
        key = f"s{len(self.written) + 1}-1"
        self.running[key] = self.journals.create(key)
        self.written[key] = dict.fromkeys(STREAMS, b"")
        return key

    @rule(
        key=sessions,
        stream=st.sampled_from(STREAMS),
        size=st.sampled_from([1, 100, 4095, 4096, 4097, 30000, 65536]),
        seed=st.integers(0, 255),
        by_pipe=st.booleans(),
    )
    def write(self, key: str, stream: int, size: int, seed: int, by_pipe: bool) -> None:
        journal = self.running.get(key)
        if journal is None:
            return
        data = random.Random(seed).randbytes(size)
        self.written[key][stream] += data
        if not by_pipe:
            journal.add(stream, data)
            return
        os.write(self.fd[1], data)
        taken = b""
        while len(taken) < size:
            taken += journal.take(stream, self.fd[0], 20000)
        assert taken == data

    @rule(key=sessions, noted=st.booleans())
    def end(self, key: str, noted: bool) -> None:
        journal = self.running.pop(key, None)
        if journal is not None:
            self.journals.end(journal, {"code": 1} if noted else None)
            if noted:
                self.noted[key] = journal

    @rule()
    def next_agent(self) -> None:
        self._close()
        readable = {key for key, journal in self.noted.items() if self.journals.readable(journal)}
        before = {key: [journal.start(each) for each in STREAMS] for key, journal in self.running.items()}
        self.journals = opened(Path(self.folder.name))
        self.running = {key: self.journals.open(key) for key in self.running}
        assert {key: [journal.start(each) for each in STREAMS] for key, journal in self.running.items()} == before
        assert self.journals.recover().keys() == readable
        self.noted = {key: self.journals.of_ended(key) for key in readable}

    @invariant()
    def what_is_kept_is_what_was_written(self) -> None:
        kept = 0
        ended = {key: each for key, each in self.noted.items() if self.journals.readable(each)}
        for key, journal in {**self.running, **ended}.items():
            for stream in STREAMS:
                whole = self.written[key][stream]
                assert journal.end(stream) == len(whole)
                assert all_of(journal, stream) == whole[journal.start(stream) :]
                kept += journal.end(stream) - journal.start(stream)
        # The last page of a stream stays.
        assert kept <= MOST + 8192 * len(self.running)

    def teardown(self) -> None:
        if hasattr(self, "fd"):
            self._close()
            for fd in self.fd:
                os.close(fd)
            self.folder.cleanup()

    def _close(self) -> None:
        """Let an agent be no more."""
        for journal in self.running.values():
            for stream in journal.streams.values():
                if stream.fd >= 0:
                    os.close(stream.fd)
        assert self.journals._directory is not None
        os.close(self.journals._directory)


Model.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
test_model = Model.TestCase
