"""What goes wrong with a file, as the API's clients read it: by errno."""

from __future__ import annotations

import errno
import os
from typing import Any

from ballpoint.core.errors import BallpointError, InvalidError

_STATUSES = {
    **dict.fromkeys((errno.ENOENT,), 404),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), 403),
    **dict.fromkeys((errno.EISDIR, errno.ENOTDIR, errno.EINVAL, errno.ENAMETOOLONG, errno.ELOOP), 400),
    **dict.fromkeys(
        (errno.EEXIST, errno.ENOTEMPTY, errno.EBUSY, errno.ETXTBSY, errno.EXDEV, errno.EMLINK, errno.EAGAIN), 409
    ),
    errno.EFBIG: 413,
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), 507),
    # A FUSE daemon or a server that has gone.
    **dict.fromkeys((errno.ENOTCONN, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ECONNABORTED), 503),
}
_HINTS = {
    errno.EXDEV: "the two are on different file systems: copy it, then delete it",
    errno.ENOTEMPTY: "recursive=true deletes what is in it, too",
    errno.EACCES: "asRoot=true acts as root inside the sprite",
    errno.EPERM: "asRoot=true acts as root inside the sprite",
}


class FileError(BallpointError):
    """The sprite's kernel refused it.

    Attributes:
        number: errno.
        path: what it is about, as it is shown.
    """

    kind = "invalid"

    def __init__(self, number: int, path: str, *, hint: str | None = None) -> None:
        reason = os.strerror(number)
        reason = reason[:1].lower() + reason[1:]
        super().__init__(f"{path}: {reason}", hint=hint or _HINTS.get(number), code=reason)
        self.number = number
        self.path = path

    @property
    def status(self) -> int:  # type: ignore[override]
        return _STATUSES.get(self.number, 500)


def shown(path: bytes) -> str:
    """A path in an answer: what is no UTF-8 in it is U+FFFD."""
    return path.decode("utf-8", "replace")


def error_body(error: BallpointError, path: str) -> dict[str, Any]:
    """The contract's body for files, `{error, code, path}`, with what every error of this product has.

    Args:
        path: what the request was about, where the error does not say so itself.
    """
    if isinstance(error, FileError):
        path, code = error.path, errno.errorcode.get(error.number, "EIO")
    else:
        code = "EINVAL" if isinstance(error, InvalidError) else "EIO"
    body = {"error": error.code, "message": error.message, "code": code, "path": path}
    if error.hint:
        body["hint"] = error.hint
    return body
