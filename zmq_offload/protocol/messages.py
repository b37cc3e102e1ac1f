"""Envelopes: the first frame of every message, all that the broker needs to route it.

An envelope is one version byte followed by a msgpack array `[code, field, ...]`, the fields in the order of the
classes below. Times are spans in microseconds, never clock readings: devices' clocks are wrong. docs/protocol.md
describes each message for someone who writes a peer in another language.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import msgpack

from zmq_offload.errors import ProtocolError
from zmq_offload.protocol import limits

VERSION = 3
SESSION_BYTES = 16
SIGNATURE_BYTES = 16
LATEST = 0
"""The version that stands for "the highest that is served"."""


class Key(NamedTuple):
    """What names a request everywhere: its client's session token and that client's number for it."""

    session: bytes
    id: int

    def __str__(self) -> str:
        return f"{self.session.hex()[:8]}/{self.id}"


# --- client -> broker -------------------------------------------------------------------------------------------


class Request(NamedTuple):
    """Run a model; a header and the input tensors follow.

    `signature` is what the caller was built for (`zmq_offload.protocol.tensors.signature_of`): a request for the latest
    version goes to one that has it. Empty: to any. `max_frame_bytes` is the largest frame that the client takes.
    """

    session: bytes
    id: int
    model: str
    version: int
    budget_us: int
    priority: int
    signature: bytes = b""
    max_frame_bytes: int = limits.MESSAGE_BYTES


class Cancel(NamedTuple):
    """Take a request back; a queued one is not run."""

    session: bytes
    id: int


class Query(NamedTuple):
    """Ask for "models" or "status"; an Answer comes back."""

    session: bytes
    id: int
    what: str


class Ping(NamedTuple):
    """Is the broker there, and does it still hold these requests? A Pong comes back.

    Requests that it holds are answered on the connection of the Ping from now on.
    """

    session: bytes
    ids: list[int]


# --- broker -> client -------------------------------------------------------------------------------------------


class Result(NamedTuple):
    """The outputs of a request; a header and the output tensors follow."""

    session: bytes
    id: int
    version: int
    queue_us: int
    compute_us: int
    broker_us: int


class Error(NamedTuple):
    """A request that failed, and why; `id` 0 where the fault is not one request's."""

    session: bytes
    id: int
    code: str
    text: str


class Answer(NamedTuple):
    """What a Query asked for; a body (msgpack) follows."""

    session: bytes
    id: int


class Pong(NamedTuple):
    """The broker is there. It does not hold the requests `ids` of the Ping: they, or their replies, were lost. It takes
    frames of at most `max_frame_bytes`."""

    session: bytes
    ids: list[int]
    max_frame_bytes: int = limits.MESSAGE_BYTES


# --- broker -> worker -------------------------------------------------------------------------------------------


class Dispatch(NamedTuple):
    """Run this attempt at a request; the client's header and tensors follow untouched."""

    session: bytes
    id: int
    attempt: int
    model: str
    version: int
    budget_us: int


class Revoke(NamedTuple):
    """This attempt is not wanted any more; if it did not start, do not run it. Answered like any attempt."""

    session: bytes
    id: int
    attempt: int


class Identify(NamedTuple):
    """The broker does not know this worker (any more): announce."""


class Probe(NamedTuple):
    """Tells an idle worker that the broker is there and takes frames of at most `max_frame_bytes`, and the broker
    whether the connection still is."""

    max_frame_bytes: int = limits.MESSAGE_BYTES


class Farewell(NamedTuple):
    """The answer to a Goodbye: no Dispatch comes after it."""


# --- worker -> broker -------------------------------------------------------------------------------------------


class Announce(NamedTuple):
    """Who is here, how many requests it may hold, and the largest frame that it takes; a body with the models'
    descriptions follows."""

    name: str
    slots: int
    max_frame_bytes: int = limits.MESSAGE_BYTES


class Heartbeat(NamedTuple):
    """The worker is idle and well."""


class Done(NamedTuple):
    """An attempt succeeded; a header and the output tensors follow."""

    session: bytes
    id: int
    attempt: int
    compute_us: int


class Failed(NamedTuple):
    """An attempt failed, and why."""

    session: bytes
    id: int
    attempt: int
    code: str
    text: str


class Goodbye(NamedTuple):
    """The worker is going: it finishes what it holds and wants no more."""


FromClient: TypeAlias = Request | Cancel | Query | Ping
ToClient: TypeAlias = Result | Error | Answer | Pong
FromWorker: TypeAlias = Announce | Heartbeat | Done | Failed | Goodbye
ToWorker: TypeAlias = Dispatch | Error | Revoke | Identify | Probe | Farewell
Message: TypeAlias = FromClient | ToClient | FromWorker | ToWorker

_CODES: dict[int, Any] = {
    1: Request,
    2: Cancel,
    3: Query,
    4: Ping,
    17: Result,
    18: Error,
    19: Answer,
    20: Pong,
    33: Dispatch,
    34: Revoke,
    35: Identify,
    36: Probe,
    37: Farewell,
    49: Announce,
    50: Heartbeat,
    51: Done,
    52: Failed,
    53: Goodbye,
}
CODES = {cls: code for code, cls in _CODES.items()}
"""Message class -> its code on the wire."""

FROM_CLIENT: frozenset[type] = frozenset((Request, Cancel, Query, Ping))
TO_CLIENT: frozenset[type] = frozenset((Result, Error, Answer, Pong))
FROM_WORKER: frozenset[type] = frozenset((Announce, Heartbeat, Done, Failed, Goodbye))
TO_WORKER: frozenset[type] = frozenset((Dispatch, Error, Revoke, Identify, Probe, Farewell))


def _unsigned(most: int) -> str:
    return f"type({{0}}) is int and 0 <= {{0}} <= {most}"


def _text(most: int, least: int = 0) -> str:
    return f"type({{0}}) is str and {least} <= len({{0}}) <= {most}"


_id = _unsigned(2**63 - 1)
_RULES = {
    "session": f"type({{0}}) is bytes and len({{0}}) == {SESSION_BYTES}",
    "id": _id,
    "model": _text(limits.MODEL_NAME_BYTES, 1),
    "version": _unsigned(limits.VERSION),
    "budget_us": _unsigned(limits.BUDGET_US),
    "priority": f"type({{0}}) is int and -{limits.PRIORITY} <= {{0}} <= {limits.PRIORITY}",
    "what": "{0} in ('models', 'status')",
    "queue_us": _unsigned(2**63 - 1),
    "compute_us": _unsigned(2**63 - 1),
    "broker_us": _unsigned(2**63 - 1),
    "code": _text(64, 1),
    "text": _text(limits.MESSAGE_CHARS),
    "ids": f"type({{0}}) is list and len({{0}}) <= {limits.PING_IDS} and all({_id.format('each')} for each in {{0}})",
    "attempt": _unsigned(limits.VERSION),
    "name": f"{_text(limits.NAME_BYTES, 1)} and {{0}}.isprintable()",
    "slots": "type({0}) is int and 1 <= {0} <= 65536",
    "signature": f"type({{0}}) is bytes and len({{0}}) in (0, {SIGNATURE_BYTES})",
    "max_frame_bytes": _unsigned(2**63 - 1),
}
"""What a field must be, as an expression in which {0} is its value."""


def _check(fields: tuple[str, ...]) -> Callable[..., bool]:
    """A function of the fields' values that tells whether all are as they must be. One compiled expression for a
    whole message: a call for each field would cost more than taking the message apart."""
    rules = " and ".join(f"({_RULES[field].format(field)})" for field in fields)
    check: Callable[..., bool] = eval(f"lambda {', '.join(fields)}: {rules or True}")
    return check


_MOST_BYTES = limits.ENVELOPE_BYTES
_MOST_ITEMS = 2 * limits.PING_IDS
_UNKNOWN: tuple[Any, int, Callable[..., bool]] = (None, 0, bool)
_DECODERS = {code: (cls, len(cls._fields), _check(cls._fields)) for code, cls in _CODES.items()}
_FIELD_CHECKS = {field: _check((field,)) for field in _RULES}
_PREFIX = bytes([VERSION])
_pack = msgpack.Packer().pack
_new = tuple.__new__


def encode(message: Message) -> bytes:
    """The envelope frame of a message."""
    return _PREFIX + _pack((CODES[type(message)], *message))  # type: ignore[no-any-return]


def decode(frame: bytes, expected: frozenset[type]) -> Any:
    """The message of an envelope frame; one of the classes in `expected`.

    Raises ProtocolError for anything else. Its `key` names the request where the envelope says so much, so that the
    sender can be answered.
    """
    if not 2 <= len(frame) <= _MOST_BYTES:
        raise ProtocolError(f"an envelope has 2 to {_MOST_BYTES} bytes, not {len(frame)}")
    if frame[0] != VERSION:
        raise ProtocolError(f"protocol version {frame[0]} is not spoken here, only {VERSION}")
    values = unpack(frame[1:], "an envelope", _MOST_ITEMS)
    if type(values) is not list or not values or type(code := values.pop(0)) is not int:
        raise ProtocolError("an envelope is an array that begins with the message's code")
    cls, count, check = _DECODERS.get(code, _UNKNOWN)
    if cls not in expected:
        what = f"message code {code}" if cls is None else cls.__name__
        raise ProtocolError(f"unexpected {what}: clients connect to the broker's frontend, workers to its backend")
    if len(values) != count:
        raise ProtocolError(f"{cls.__name__} has {count} fields, not {len(values)}")
    if not check(*values):
        raise _fault(cls, values)
    return _new(cls, values)  # as cls._make(values), which looks at the length once more


def _fault(cls: Any, values: list[Any]) -> ProtocolError:
    """The error for the first field that cannot be."""
    at = next(at for at, field in enumerate(cls._fields) if not _FIELD_CHECKS[field](values[at]))
    error = ProtocolError(f"{cls.__name__}: field {cls._fields[at]!r} cannot be {shown(values[at])}")
    if at > 1 and cls._fields[:2] == ("session", "id"):
        error.key = (values[0], values[1])
    return error


def unpack(data: Any, what: str, items: int) -> Any:
    """`data`, whose size the caller has bounded, as msgpack with at most `items` in an array or map; raises
    ProtocolError."""
    try:
        return msgpack.unpackb(data, strict_map_key=False, max_array_len=items, max_map_len=items)
    except Exception as error:  # msgpack raises ValueErrors of many kinds, UnicodeDecodeError, StackError, ...
        raise ProtocolError(f"{what} is not msgpack: {type(error).__name__}") from None


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80


def shown(value: Any) -> str:
    """A peer's value in an error's text: short, and safe for what is nested deeper than `repr` can follow."""
    return _SHORT.repr(value)
