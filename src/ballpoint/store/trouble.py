"""What went wrong between us and a remote store, read out of what obstore says of it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from obstore import exceptions

# obstore raises two of Python's own kinds beside its own.
FAILURES = (exceptions.BaseError, FileNotFoundError, ValueError)

# obstore has no field for either; a key has no space and no `<`, so what is found first is what the server said.
_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>([A-Za-z0-9]{1,64})</Code>")

_NO_BUCKET = {"NoSuchBucket", "ContainerNotFound"}
_BUSY = {408, 409, 429}


@dataclass(frozen=True)
class Trouble:
    """A failed request.

    Attributes:
        reason: for people. Never what obstore said as a whole: it quotes the server, and servers quote signatures.
        status: of HTTP; None if there was no answer.
        code: the word in S3's, GCS's or Azure's error body, or "".
        wrong: obstore refused to make a request of it.
    """

    reason: str
    status: int | None = None
    code: str = ""
    wrong: bool = False

    @property
    def passing(self) -> bool:
        """Whether the same request may succeed soon."""
        if self.wrong:
            return False
        # S3 says RequestTimeout, of a body that came too slowly, with status 400.
        return self.status is None or self.status >= 500 or self.status in _BUSY or self.code == "RequestTimeout"

    @property
    def open(self) -> bool:
        """Whether the request may have been carried out all the same, or may be later."""
        return self.passing and self.status not in (409, 429)

    @property
    def not_found(self) -> bool:
        """Whether the object is not there, and not merely its bucket."""
        return self.status == 404 and self.code not in _NO_BUCKET

    @property
    def exists(self) -> bool:
        """Whether a create found an object there.

        412 is what S3 and GCS say. Azure says 409 with this code; S3's own 409 is said of a create or delete that is
        going on, of which nobody knows yet how it ends.
        """
        return self.status == 412 or self.code == "BlobAlreadyExists"

    @property
    def hint(self) -> str | None:
        """What to do about it."""
        if self.code in _NO_BUCKET:
            return "create the bucket, or correct the store's URL"
        if self.status in (401, 403):
            return "the credentials in the environment must allow to get, put, list and delete objects"
        return None


NO_ANSWER = Trouble("it does not answer")


def trouble_of(failure: Exception) -> Trouble:
    """What `failure`, one of FAILURES, was."""
    text = str(failure)
    status = _STATUS.search(text)
    if status is None:
        if isinstance(failure, ValueError | exceptions.InvalidPathError | exceptions.NotSupportedError):
            return Trouble("the request cannot be made", wrong=True)
        if isinstance(failure, FileNotFoundError):
            return Trouble("it says that there is none", 404)
        return Trouble("no answer came that could be read")
    code = _CODE.search(text, status.end())
    word = code.group(1) if code else ""
    return Trouble(f"it says {status.group(1)} {word}".rstrip(), int(status.group(1)), word)
