"""Every error that a user of this project can see.

The tree, with the status code that each class carries (names and meanings follow gRPC's canonical codes)::

    OffloadError                        (abstract)
    ├── InvalidArgument                 INVALID_ARGUMENT     the caller's input is wrong; the same call fails again
    │   └── ProtocolError               INVALID_ARGUMENT     bytes from a peer are not a message of this protocol
    ├── NotFound                        NOT_FOUND            no such model or version; the message lists what is served
    ├── AlreadyExists                   ALREADY_EXISTS       a version or folder exists and is not overwritten
    ├── FailedPrecondition              FAILED_PRECONDITION  a file, library or version does not fit
    ├── DeadlineExceeded                DEADLINE_EXCEEDED    the request's time ran out (also a TimeoutError)
    ├── ResourceExhausted               RESOURCE_EXHAUSTED   a queue or limit is full; try later or elsewhere
    ├── Unavailable                     UNAVAILABLE          nobody can serve the request now; try again
    ├── Cancelled                       CANCELLED            the caller canceled, or the client was closed
    ├── Aborted                         ABORTED              every attempt lost its worker; not tried again
    ├── Internal                        INTERNAL             the subgraph or the fabric failed
    ├── Unimplemented                   UNIMPLEMENTED        the server does not have this, or it is switched off
    ├── Unauthenticated                 UNAUTHENTICATED      the peer's key or credential is not known
    └── PermissionDenied                PERMISSION_DENIED    the peer's key or credential does not allow this

The code travels on the wire by its name; `from_status` turns it back into the class. docs/errors.md says when each
error occurs and what to do.

Every message has the same form, so that all of them read as one voice:

- One line: `<what is wrong, with the value>; <what would be right>`. The second half is left out if nobody could guess
  wrong: "the client is closed".
- Lower case at the start, no period at the end. Names, flags and paths keep their spelling.
- Present tense and a subject: "m.json is not a plan file", not "no plan", "bad plan" or "could not load plan".
- The value as it was given: `repr` for what a user typed (`priority 1000`, `endpoint 'tcp:/x'`), plain for a path.
- What would be right is an instruction ("use tcp://HOST:PORT", "compile it with --with-fallback") or a bound ("at most
  63 characters").
- The text of another library is last, after a colon, in one line (`one_line`); a peer's text is escaped (`printable`).
"""

from __future__ import annotations

import enum


class Status(str, enum.Enum):
    """The status codes of errors; each value is the name that travels on the wire."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    NOT_FOUND = "NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    UNAVAILABLE = "UNAVAILABLE"
    CANCELLED = "CANCELLED"
    ABORTED = "ABORTED"
    INTERNAL = "INTERNAL"
    UNIMPLEMENTED = "UNIMPLEMENTED"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    PERMISSION_DENIED = "PERMISSION_DENIED"


class OffloadError(Exception):
    """Base of all errors of this project.

    Parameters
    ----------
    message : str
        One line for a person.

    Attributes
    ----------
    code : Status
        The status code of the class.
    message : str
        The message, as it was given.

    Examples
    --------
    >>> try:
    ...     client.infer("ocr", {"image": image}, timeout=0.5)
    ... except OffloadError as error:
    ...     print(error.code.value, error.message)
    """

    code: Status = Status.INTERNAL

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidArgument(OffloadError, ValueError):
    """The caller's input is wrong: the name, shape or datatype of a tensor, an option, a model file.

    The same call fails again. Also a `ValueError`.
    """

    code = Status.INVALID_ARGUMENT


class ProtocolError(InvalidArgument):
    """Bytes from a peer are not a message of this protocol, or exceed its limits.

    Attributes
    ----------
    key : tuple of (bytes, int), or None
        Session and id of the request that the bytes belong to, if they could be read.
    """

    key: tuple[bytes, int] | None = None


class NotFound(OffloadError, LookupError):
    """No worker serves the model or version; the message lists what is served. Also a `LookupError`."""

    code = Status.NOT_FOUND


class AlreadyExists(OffloadError):
    """The version, folder or file to write exists and was not to be overwritten."""

    code = Status.ALREADY_EXISTS


class FailedPrecondition(OffloadError):
    """A file, a library or a version does not fit: it is missing, damaged, or made for another TVM or CPU."""

    code = Status.FAILED_PRECONDITION


class DeadlineExceeded(OffloadError, TimeoutError):
    """The request's time ran out before its reply arrived. Also a `TimeoutError`."""

    code = Status.DEADLINE_EXCEEDED


class ResourceExhausted(OffloadError):
    """A queue or a limit of the fabric is full. Try later, or with another broker."""

    code = Status.RESOURCE_EXHAUSTED


class Unavailable(OffloadError, ConnectionError):
    """Nobody can serve the request now: no broker answers, or no worker that holds the model.

    Trying again, or elsewhere, may help. Also a `ConnectionError`.
    """

    code = Status.UNAVAILABLE


class Cancelled(OffloadError):
    """The caller canceled the request, or its client was closed."""

    code = Status.CANCELLED


class Aborted(OffloadError):
    """Every attempt at the request lost its worker, so the request is likely the cause and is not tried again."""

    code = Status.ABORTED


class Internal(OffloadError):
    """The subgraph, or the fabric itself, failed while it ran the request; the log has details."""

    code = Status.INTERNAL


class Unimplemented(OffloadError):
    """The server does not have this method or extension, or it is switched off."""

    code = Status.UNIMPLEMENTED


class Unauthenticated(OffloadError):
    """The broker does not know this client's key, or the two ends use different keys; a gateway knows no credential."""

    code = Status.UNAUTHENTICATED


class PermissionDenied(OffloadError):
    """The client's key or credential is known but does not allow this model or session."""

    code = Status.PERMISSION_DENIED


_CLASSES: dict[str, type[OffloadError]] = {cls.code.value: cls for cls in OffloadError.__subclasses__()}


def printable(text: str) -> str:
    """Escape control characters in a peer's text, line ends included, for terminals and logs."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def from_status(code: str, message: str) -> OffloadError:
    """The error of a status code from the wire; an unknown code, from a newer peer, becomes `Internal`."""
    message = printable(message)
    known = _CLASSES.get(code)
    return known(message) if known else Internal(f"{code}: {message}")


def one_line(error: BaseException) -> str:
    """The text of another library's error in one line, cut to 500 characters, for a message of ours."""
    return " ".join(str(error).split())[:500]
