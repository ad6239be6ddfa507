"""Errors: few kinds, told apart by what the caller must do.

One table maps a kind to its HTTP status and to the exit code of the command line; what exactly went wrong belongs in
the message, and what to do about it in the hint.
"""

from __future__ import annotations

from typing import ClassVar, Final

# Codes that more than one place must know.
NO_CAPACITY: Final = "no_capacity"  # the host has nothing left for one more instance
DISK_FULL: Final = "disk_full"  # the volume pool has no room for a new volume


class BallpointError(Exception):
    """Base of all errors a caller is meant to act on.

    Args:
        message: one sentence saying what is wrong, without a final newline.
        hint: what to do next, as a sentence or a command; shown after the message.
        code: machine-readable word of the contract's error body; defaults to the kind's own.
    """

    kind: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code or self.kind

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class InvalidError(BallpointError):
    """The request is wrong and will be wrong again: change it."""

    kind = "invalid"
    status = 400


class UnauthorizedError(BallpointError):
    """No token, or one that is unknown or revoked: log in."""

    kind = "unauthorized"
    status = 401


class ForbiddenError(BallpointError):
    """Who asks is known, and may not do this in this way: another way may do."""

    kind = "forbidden"
    status = 403


class NotFoundError(BallpointError):
    """The thing is truly gone or never was (never said for a passing trouble)."""

    kind = "not_found"
    status = 404


class GoneError(BallpointError):
    """It was there, and has ended as it was to: there is nothing left to do."""

    kind = "gone"
    status = 410


class ConflictError(BallpointError):
    """The thing's present state forbids it: look at the state, then decide."""

    kind = "conflict"
    status = 409


class FencedError(BallpointError):
    """Another writer owns the volume now: final for this process."""

    kind = "fenced"
    status = 409


class UnavailableError(BallpointError):
    """It cannot be done now; the same request may succeed later."""

    kind = "unavailable"
    status = 503


class CorruptError(BallpointError):
    """Stored data is damaged: an operator must look."""

    kind = "corrupt"
    status = 500


class InternalError(BallpointError):
    """A defect of ours, or a host that broke its promise: report it."""

    kind = "internal"
    status = 500
