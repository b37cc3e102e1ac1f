"""Every error that a user of this project can see.

The tree, with the status code that each class carries (names and meanings follow gRPC's canonical codes)::

    OffloadError                        (abstract)
    ├── InvalidArgument                 INVALID_ARGUMENT     the caller's input is wrong; the same call fails again
    │   └── ProtocolError               INVALID_ARGUMENT     bytes that are no message of this protocol
    ├── NotFound                        NOT_FOUND            no such model or version; the message lists what is served
    ├── AlreadyExists                   ALREADY_EXISTS       a version or a folder is there; it is not overwritten
    ├── FailedPrecondition              FAILED_PRECONDITION  something on disk or in a library does not fit
    ├── DeadlineExceeded                DEADLINE_EXCEEDED    the time budget ran out (also a TimeoutError)
    ├── ResourceExhausted               RESOURCE_EXHAUSTED   a queue or a limit is full; try later or elsewhere
    ├── Unavailable                     UNAVAILABLE          nobody there to serve it now; may be tried again
    ├── Cancelled                       CANCELLED            the caller, or the end of the client, took it back
    ├── Aborted                         ABORTED              every attempt lost its worker; given up
    ├── Internal                        INTERNAL             the subgraph or the fabric failed while running it
    ├── Unauthenticated                 UNAUTHENTICATED      the peer's key is not known
    └── PermissionDenied                PERMISSION_DENIED    the peer's key is known but not for this

The code travels on the wire (docs/errors.md says when each comes and what to do); `from_status` turns it back
into the class. Names are enough for other languages, so the wire carries the name and not a number.
"""

from __future__ import annotations

import enum


class Status(str, enum.Enum):
    """Status codes, by the names that travel on the wire."""

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
    UNAUTHENTICATED = "UNAUTHENTICATED"
    PERMISSION_DENIED = "PERMISSION_DENIED"


class OffloadError(Exception):
    """Base of all errors of this project; `code` is its `Status`, `message` one line for a person."""

    code: Status = Status.INTERNAL

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidArgument(OffloadError, ValueError):
    """The caller's input is wrong: a tensor's name, shape or datatype, an option, a model file."""

    code = Status.INVALID_ARGUMENT


class ProtocolError(InvalidArgument):
    """Bytes from a peer that are no message of this protocol; raised by `zmq_offload.protocol` and nowhere else.

    `key` is the (session, id) of the request at fault, where the bytes say so much.
    """

    key: tuple[bytes, int] | None = None


class NotFound(OffloadError, LookupError):
    """No such model or version; the message lists what is served."""

    code = Status.NOT_FOUND


class AlreadyExists(OffloadError):
    """The version or the folder to write is there already and was not to be overwritten."""

    code = Status.ALREADY_EXISTS


class FailedPrecondition(OffloadError):
    """A file, a library or a version that does not fit: damaged, for another TVM, for another CPU."""

    code = Status.FAILED_PRECONDITION


class DeadlineExceeded(OffloadError, TimeoutError):
    """The time budget of the request ran out before an answer came."""

    code = Status.DEADLINE_EXCEEDED


class ResourceExhausted(OffloadError):
    """A queue or a limit of the fabric is full."""

    code = Status.RESOURCE_EXHAUSTED


class Unavailable(OffloadError, ConnectionError):
    """Nobody is there to serve the request now: no broker answers, or no worker holds the model."""

    code = Status.UNAVAILABLE


class Cancelled(OffloadError):
    """The request was taken back by its caller, or its client was closed."""

    code = Status.CANCELLED


class Aborted(OffloadError):
    """The request lost its worker in every attempt, so that it is taken for the cause and given up."""

    code = Status.ABORTED


class Internal(OffloadError):
    """The subgraph, or the fabric itself, failed while it ran the request."""

    code = Status.INTERNAL


class Unauthenticated(OffloadError):
    """The peer's key is not known here."""

    code = Status.UNAUTHENTICATED


class PermissionDenied(OffloadError):
    """The peer's key is known but does not allow this."""

    code = Status.PERMISSION_DENIED


_CLASSES: dict[str, type[OffloadError]] = {cls.code.value: cls for cls in OffloadError.__subclasses__()}


def printable(text: str) -> str:
    """A peer's text, safe for a terminal and a log: control characters, line ends among them, are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def from_status(code: str, message: str) -> OffloadError:
    """The error that a status code from the wire stands for; a code of a newer peer becomes `Internal`."""
    message = printable(message)
    known = _CLASSES.get(code)
    return known(message) if known else Internal(f"{code}: {message}")


def one_line(error: BaseException) -> str:
    """What an error of another library says, as part of a message of ours: in one line, and not all of a long one."""
    return " ".join(str(error).split())[:500]
