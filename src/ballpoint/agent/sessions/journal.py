"""What sessions wrote, from their first byte on: files of the node, outside the sprite's disk.

The node gives an instance a directory on a file system of its own (runtime/container/journals.py), and removes it with
the instance. A stream of a session is one file in it, in which a byte's offset is its cursor: what is dropped becomes a
hole at the beginning, and what is left keeps its place. Names: KEY.1 and KEY.2 for stdout and stderr, KEY.x for a
session that ended while nobody was attached (JSON). The attribute `user.start` of a stream says from which offset on it
is whole, where that is not the end of the hole.

What is written here is not synced: it is lost with the host, as everything is that runs in it.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
from collections import OrderedDict
from contextlib import suppress
from typing import Any

from ballpoint.host import filesystem

log = logging.getLogger("agent.journal")

STREAMS = (1, 2)
_NAME = re.compile(r"(s[0-9]+-[0-9]+)\.([12x])")
_PAGE = 4096
# Dropped in steps, or every write beyond the bound would make a hole of its own.
_STEPS = 64
_NOTE_MAX = 64 * 1024
_START = "user.start"
# Of sessions that have ended: each has up to three files, and takes memory.
_ENDED_MAX = 256


class Stream:
    """One stream of one session.

    Attributes:
        start: offset of the oldest byte that is kept.
        end: offset behind the newest; what was written in all.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.fd = -1
        self.start = 0
        self.end = 0

    @property
    def kept(self) -> int:
        return self.end - self.start


class Journal:
    """The streams of one session. Made by `Journals`.

    Attributes:
        key: names its files.
        streams: by their numbers (contract 3.2).
    """

    def __init__(self, owner: Journals, key: str) -> None:
        self._owner = owner
        self.key = key
        self.streams = {number: Stream(f"{key}.{number}") for number in STREAMS}

    def start(self, stream: int) -> int:
        """Offset of the oldest byte that can be read."""
        return self.streams[stream].start

    def end(self, stream: int) -> int:
        """Offset behind the newest."""
        return self.streams[stream].end

    def take(self, stream: int, pipe: int, most: int) -> bytes:
        """Move what a pipe holds into the journal, and return it; empty at the pipe's end.

        The kernel moves it in one step: an agent that is killed has it in the journal or leaves it in the pipe.

        Raises:
            BlockingIOError: there is nothing now.
        """
        return self._owner.take(self.streams[stream], pipe, most)

    def add(self, stream: int, data: bytes) -> None:
        """Append what was read already. A terminal is read so: it cannot be spliced into a file."""
        self._owner.add(self.streams[stream], data)

    def read(self, stream: int, at: int, most: int) -> bytes:
        """Bytes from offset `at` on, which must be kept: at least one, unless it is the end."""
        return self._owner.read(self.streams[stream], at, most)


class Journals:
    """The journals of one agent.

    Args:
        directory: descriptor of where they are, which is theirs from now on; None where the instance was made by a
            version that had none: then nothing is kept.
        most: bytes to keep, of all sessions together.
    """

    def __init__(self, directory: int | None, most: int) -> None:
        self._directory = directory
        self._most = most
        self._step = max(_PAGE, most // _STEPS // _PAGE * _PAGE)
        self._kept = 0
        self._running: dict[str, Journal] = {}
        self._ended: OrderedDict[str, Journal] = OrderedDict()

    def create(self, key: str) -> Journal:
        """The journal of a new session."""
        self._running[key] = Journal(self, key)
        return self._running[key]

    def open(self, key: str) -> Journal:
        """The journal of a session that an earlier agent had."""
        journal = Journal(self, key)
        if self._directory is not None:
            for stream in journal.streams.values():
                self._recover(stream)
        self._running[key] = journal
        return journal

    def end(self, journal: Journal, note: dict[str, Any] | None) -> None:
        """Its session has ended; it may be read until room is needed.

        Args:
            note: what the next agent should know of it; None where only this one need.
        """
        self._running.pop(journal.key, None)
        self._ended[journal.key] = journal
        for stream in journal.streams.values():
            self._close(stream)
        if note is not None and self._directory is not None:
            try:
                fd = os.open(f"{journal.key}.x", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=self._directory)
                try:
                    os.write(fd, json.dumps(note).encode())
                finally:
                    os.close(fd)
            except OSError as error:
                log.warning("the end of session %s is not noted: %s", journal.key, error)
        while len(self._ended) > _ENDED_MAX:
            self._forget_oldest()

    def readable(self, journal: Journal) -> bool:
        """Whether the journal of an ended session is still there."""
        return journal.key in self._ended

    def recover(self) -> dict[str, dict[str, Any]]:
        """Sessions that ended under earlier agents while nobody was attached: key -> note. Other files are removed.

        To be called once, when every session that goes on has been opened.
        """
        if self._directory is None:
            return {}
        listing = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._directory)
        try:
            with os.scandir(listing) as entries:
                names = sorted(entry.name for entry in entries)
        finally:
            os.close(listing)
        keys = {name: match[1] for name in names if (match := _NAME.fullmatch(name)) is not None}
        notes = {
            key: note
            for name, key in keys.items()
            if name.endswith(".x") and key not in self._running and (note := self._note(name)) is not None
        }
        for name in names:
            if keys.get(name) not in notes and keys.get(name) not in self._running:
                self._unlink(name)
        for key in notes:
            self.end(self.open(key), None)
        return notes

    def of_ended(self, key: str) -> Journal:
        """The journal of a session that `recover` has found."""
        return self._ended[key]

    # ---- what journals do ----

    def take(self, stream: Stream, pipe: int, most: int) -> bytes:
        fd = self._opened(stream)
        if fd >= 0:
            try:
                count = os.splice(pipe, fd, most, offset_dst=stream.end, flags=os.SPLICE_F_NONBLOCK)
            except OSError as error:
                if not self._make_room(error):
                    raise
            else:
                data = os.pread(fd, count, stream.end) if count else b""
                self._grown(stream, count)
                return data
        data = os.read(pipe, most)
        self._lose(stream, len(data))
        return data

    def add(self, stream: Stream, data: bytes) -> None:
        fd = self._opened(stream)
        written = 0
        if fd >= 0:
            try:
                while written < len(data):
                    written += os.pwrite(fd, memoryview(data)[written:], stream.end + written)
            except OSError as error:
                if not self._make_room(error):
                    raise
                self._lose(stream, len(data))
                return
            self._grown(stream, written)
        else:
            self._lose(stream, len(data))

    def read(self, stream: Stream, at: int, most: int) -> bytes:
        most = min(most, stream.end - at)
        if stream.fd >= 0:
            return os.pread(stream.fd, most, at)
        try:
            fd = os.open(stream.name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._directory)
        except OSError as error:
            log.warning("the output of %s cannot be read: %s", stream.name, error.strerror)
            return b""
        try:
            return os.pread(fd, most, at)
        finally:
            os.close(fd)

    def _opened(self, stream: Stream) -> int:
        """The stream's file, made with its first byte: most commands write to one stream, or to none."""
        if stream.fd < 0 and self._directory is not None:
            try:
                stream.fd = os.open(stream.name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=self._directory)
            except OSError as error:
                if not self._make_room(error):
                    raise
        return stream.fd

    def _recover(self, stream: Stream) -> None:
        assert self._directory is not None
        with suppress(FileNotFoundError):
            stream.fd = os.open(stream.name, os.O_RDWR | os.O_CLOEXEC, dir_fd=self._directory)
            stream.end = os.fstat(stream.fd).st_size
            try:
                stream.start = os.lseek(stream.fd, 0, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                stream.start = stream.end  # it is one hole
            with suppress(OSError):  # most have none
                stream.start = max(stream.start, int(os.getxattr(stream.fd, _START)))
            self._kept += stream.kept

    def _grown(self, stream: Stream, count: int) -> None:
        stream.end += count
        self._kept += count
        while self._kept > self._most and self._drop_oldest():
            pass

    def _lose(self, stream: Stream, count: int) -> None:
        """Note bytes that could not be kept: what is kept is in one piece, so what came before them goes, too."""
        self._drop(stream, stream.kept)
        self._kept -= stream.kept
        stream.end += count
        stream.start = stream.end
        if stream.fd >= 0:
            with suppress(OSError):  # without it, the next agent would count less than was written
                os.ftruncate(stream.fd, stream.end)
                os.setxattr(stream.fd, _START, str(stream.start).encode())

    def _make_room(self, error: OSError) -> bool:
        """Whether `error` says that there is none; then there is some, of what was kept."""
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE):
            return False
        log.warning("output is not kept: %s", error.strerror)
        while self._ended:
            self._forget_oldest()
        for journal in self._running.values():
            for stream in journal.streams.values():
                self._drop(stream, stream.kept // 2)
        return True

    def _drop_oldest(self) -> bool:
        """Drop the session that ended first, or else a part of the stream that has most: a noisy one shall not take the
        room of others. False where there is nothing."""
        if self._ended:
            self._forget_oldest()
            return True
        longest = max(
            (stream for journal in self._running.values() for stream in journal.streams.values()),
            key=lambda stream: stream.kept,
        )
        return self._drop(longest, self._step)

    def _drop(self, stream: Stream, least: int) -> bool:
        """Make a hole where the kept part begins: of at least so many bytes, by whole pages, but not of the last, which
        may be written on. False where that is nothing."""
        until = min(-(-(stream.start + least) // _PAGE), stream.end // _PAGE) * _PAGE
        if until <= stream.start:
            return False
        filesystem.punch_hole(stream.fd, 0, until)
        self._kept -= until - stream.start
        stream.start = until
        return True

    def _forget_oldest(self) -> None:
        key, journal = self._ended.popitem(last=False)
        for stream in journal.streams.values():
            self._kept -= stream.kept
            if stream.end:
                self._unlink(stream.name)
            stream.start = stream.end  # whoever reads it still is told
        self._unlink(f"{key}.x")

    def _close(self, stream: Stream) -> None:
        if stream.fd >= 0:
            os.close(stream.fd)
            stream.fd = -1

    def _note(self, name: str) -> dict[str, Any] | None:
        try:
            fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._directory)
            try:
                note = json.loads(os.read(fd, _NOTE_MAX))
            finally:
                os.close(fd)
        except (OSError, ValueError):
            return None  # it was being written when its agent was killed
        return note if isinstance(note, dict) else None

    def _unlink(self, name: str) -> None:
        if self._directory is not None:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self._directory)
