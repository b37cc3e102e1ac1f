"""Envelopes: the first frame of every message, which holds all that the broker needs to route it.

An envelope is one version byte followed by a msgpack array `[code, field, ...]`, with the fields in the order of the
classes below. A field's type says which values it may have. Times are spans in microseconds and never clock readings,
because devices' clocks are wrong. docs/protocol.md describes each message for the author of a peer in another language.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, TypeAlias, TypeVar, get_type_hints

import msgpack
from msgspec import DecodeError, Meta, ValidationError, convert
from msgspec.msgpack import Decoder, Encoder

from zmq_offload import native
from zmq_offload.errors import ProtocolError
from zmq_offload.protocol import limits

VERSION = 4
SESSION_BYTES = 16
SIGNATURE_BYTES = 16
TRACE_BYTES = 25
"""Trace id (16), id of the caller's span (8), flags (1), as in a W3C `traceparent`."""
LATEST = 0
"""The version number that asks for the latest version."""

NO_FITTING_VERSION = "no served version of model"
"""Start of the broker's error if no version has the wanted signature. A device recognizes it and adds its signature."""


NO_HOLDER = "no worker that holds"
"""Start of the broker's error if the workers that served a model are gone. A device then uses another split."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A condition on a field's value that msgspec's `Meta` cannot state."""

    holds: Callable[[Any], bool]


_EMPTY_OR_FULL = Rule(lambda value: type(value) is bytes and len(value) in (0, SIGNATURE_BYTES))

Session: TypeAlias = Annotated[bytes, Meta(min_length=SESSION_BYTES, max_length=SESSION_BYTES)]
Count: TypeAlias = Annotated[int, Meta(ge=0, le=2**63 - 1)]
ModelName: TypeAlias = Annotated[str, Meta(min_length=1, max_length=limits.MODEL_NAME_BYTES)]
ModelVersion: TypeAlias = Annotated[int, Meta(ge=0, le=limits.VERSION)]
BudgetUs: TypeAlias = Annotated[int, Meta(ge=0, le=limits.BUDGET_US)]
Priority: TypeAlias = Annotated[int, Meta(ge=-limits.PRIORITY, le=limits.PRIORITY)]
Signature: TypeAlias = Annotated[
    bytes,
    Meta(max_length=SIGNATURE_BYTES),
    _EMPTY_OR_FULL,
]
Label: TypeAlias = Annotated[str, Meta(max_length=limits.MODEL_NAME_BYTES)]
Caller: TypeAlias = Annotated[str, Meta(max_length=limits.NAME_BYTES)]
Trace: TypeAlias = Annotated[bytes, Meta(max_length=TRACE_BYTES)]
QueryKind: TypeAlias = Annotated[str, Rule(("models", "status").__contains__)]
Attempt: TypeAlias = Annotated[int, Meta(ge=0, le=limits.VERSION)]
Ids: TypeAlias = Annotated[list[Count], Meta(max_length=limits.PING_IDS)]
StatusCode: TypeAlias = Annotated[str, Meta(min_length=1, max_length=64)]
Text: TypeAlias = Annotated[str, Meta(max_length=limits.MESSAGE_CHARS)]
WorkerName: TypeAlias = Annotated[str, Meta(min_length=1, max_length=limits.NAME_BYTES), Rule(str.isprintable)]
Slots: TypeAlias = Annotated[int, Meta(ge=1, le=65536)]
Elsewhere: TypeAlias = Annotated[int, Meta(ge=-1, le=2**31 - 1)]
DeviceName: TypeAlias = Annotated[str, Meta(min_length=1, max_length=64), Rule(str.isprintable)]


class Key(NamedTuple):
    """The identity of a request: its client's session token, and that client's number for it."""

    session: bytes
    id: int

    def __str__(self) -> str:
        return f"{self.session.hex()[:8]}/{self.id}"


# --- client -> broker -------------------------------------------------------------------------------------------


class Request(NamedTuple):
    """Run a model. A header and the input tensors follow.

    `signature` is the one that the caller was built for (`zmq_offload.protocol.tensors.signature_of`). A request for
    the latest version goes to a version with this signature, or to any version if it is empty. `max_frame_bytes` is the
    largest frame that the client takes. `label`, if it is not empty, stands for a version, and `version` is 0.
    `trace` says which trace the request belongs to; it is ignored unless it has TRACE_BYTES. `caller` says whom the
    request is for, if the client passes on those of many, as a gateway does: whether a canary gets it is drawn by that.
    """

    session: Session
    id: Count
    model: ModelName
    version: ModelVersion
    budget_us: BudgetUs
    priority: Priority
    signature: Signature = b""
    max_frame_bytes: Count = limits.MESSAGE_BYTES
    label: Label = ""
    trace: Trace = b""
    caller: Caller = ""


class Cancel(NamedTuple):
    """Cancel a request; a queued one is not run."""

    session: Session
    id: Count


class Query(NamedTuple):
    """Ask for "models" or "status". The reply is an Answer."""

    session: Session
    id: Count
    what: QueryKind


class Ping(NamedTuple):
    """Ask whether the broker is there and still holds these requests. The reply is a Pong.

    The broker sends the replies of requests that it holds to the connection of the Ping from now on.
    """

    session: Session
    ids: Ids


# --- broker -> client -------------------------------------------------------------------------------------------


class Result(NamedTuple):
    """The outputs of a request. A header and the output tensors follow."""

    session: Session
    id: Count
    version: ModelVersion
    queue_us: Count
    compute_us: Count
    broker_us: Count


class Error(NamedTuple):
    """Why a request failed. `id` is 0 if the error is not about one request."""

    session: Session
    id: Count
    code: StatusCode
    text: Text


class Answer(NamedTuple):
    """The reply to a Query. A body (msgpack) follows."""

    session: Session
    id: Count


class Pong(NamedTuple):
    """The broker is there, and takes frames of at most `max_frame_bytes`.

    It does not hold the requests `ids` of the Ping: they, or their replies, were lost.
    """

    session: Session
    ids: Ids
    max_frame_bytes: Count = limits.MESSAGE_BYTES


# --- broker -> worker -------------------------------------------------------------------------------------------


class Dispatch(NamedTuple):
    """Run this attempt at a request. The client's header and tensors follow unchanged."""

    session: Session
    id: Count
    attempt: Attempt
    model: ModelName
    version: ModelVersion
    budget_us: BudgetUs


class Revoke(NamedTuple):
    """Do not run this attempt if it has not started. The worker answers it like any other."""

    session: Session
    id: Count
    attempt: Attempt


class Identify(NamedTuple):
    """The broker does not know this worker; the worker announces itself."""


class Probe(NamedTuple):
    """The broker is there, and takes frames of at most `max_frame_bytes`.

    A Probe that cannot be delivered tells the broker that the connection ended.
    """

    max_frame_bytes: Count = limits.MESSAGE_BYTES


class Farewell(NamedTuple):
    """The reply to a Goodbye. No Dispatch comes after it."""


class Returned(NamedTuple):
    """A canary of the model failed its trial. A body says which, and why; the worker announces it from now on."""

    model: ModelName


# --- worker -> broker -------------------------------------------------------------------------------------------


class Announce(NamedTuple):
    """A worker's name, the requests that it may hold, and the largest frame that it takes.

    `device` is what runs its models: `cpu`, or a GPU as `cuda:0`. `restarts` counts how often its supervisor started
    another process in its place. A body with the descriptions of its models follows.
    """

    name: WorkerName
    slots: Slots
    max_frame_bytes: Count = limits.MESSAGE_BYTES
    device: DeviceName = "cpu"
    restarts: Count = 0


class Heartbeat(NamedTuple):
    """The worker works. `memory_bytes` is its resident memory; 0 if it does not know.

    `elsewhere` is how many requests of other brokers it holds; -1 if it does not tell, and the last number counts on.
    """

    memory_bytes: Count = 0
    elsewhere: Elsewhere = -1


class Done(NamedTuple):
    """An attempt succeeded. A header and the output tensors follow.

    `rows` is the share of the request in a batch; 1 without a batch dimension. `batch` is the whole batch that ran,
    in rows. Only the first request of a batch says it, the others say 0, so that the sum counts each batch once.
    """

    session: Session
    id: Count
    attempt: Attempt
    compute_us: Count
    rows: Count = 1
    batch: Count = 1


class Failed(NamedTuple):
    """Why an attempt failed."""

    session: Session
    id: Count
    attempt: Attempt
    code: StatusCode
    text: Text


class Goodbye(NamedTuple):
    """The worker leaves: it finishes what it holds and takes nothing more."""


FromClient: TypeAlias = Request | Cancel | Query | Ping
ToClient: TypeAlias = Result | Error | Answer | Pong
FromWorker: TypeAlias = Announce | Heartbeat | Done | Failed | Goodbye
ToWorker: TypeAlias = Dispatch | Error | Revoke | Identify | Probe | Farewell | Returned
Message: TypeAlias = FromClient | ToClient | FromWorker | ToWorker

_CODES: dict[int, type[Message]] = {
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
    38: Returned,
    49: Announce,
    50: Heartbeat,
    51: Done,
    52: Failed,
    53: Goodbye,
}
CODES = {cls: code for code, cls in _CODES.items()}
"""Message class -> its code on the wire."""

FROM_CLIENT: frozenset[type[FromClient]] = frozenset((Request, Cancel, Query, Ping))
TO_CLIENT: frozenset[type[ToClient]] = frozenset((Result, Error, Answer, Pong))
FROM_WORKER: frozenset[type[FromWorker]] = frozenset((Announce, Heartbeat, Done, Failed, Goodbye))
TO_WORKER: frozenset[type[ToWorker]] = frozenset((Dispatch, Error, Revoke, Identify, Probe, Farewell, Returned))


class _Field(NamedTuple):
    name: str
    type: Any
    rule: Rule | None

    def allows(self, value: object) -> bool:
        try:
            return bool(convert(value, self.type) == value) and (self.rule is None or self.rule.holds(value))
        except ValidationError:
            return False


def _fields(cls: type[Message]) -> list[_Field]:
    return [
        _Field(name, kind, next((extra for extra in kind.__metadata__ if isinstance(extra, Rule)), None))
        for name, kind in get_type_hints(cls, include_extras=True).items()
    ]


_FIELDS = {cls: _fields(cls) for cls in CODES}

_Codec: TypeAlias = tuple[Any, Callable[[bytes], tuple[Any, ...]], int | slice, Callable[[Any], bool] | None]
"""A message's class, what decodes and checks its array, and the position and the condition of its Rule; of several
Rules, all positions."""


def _codec(cls: type[Message]) -> _Codec:
    fields = _FIELDS[cls]
    array: Any = tuple
    types = int, *(field.type for field in fields)
    rules = [(at, field.rule.holds) for at, field in enumerate(fields, 1) if field.rule]
    if len(rules) > 1:

        def all_hold(values: tuple[Any, ...]) -> bool:
            return all(holds(values[at]) for at, holds in rules)

        return cls, Decoder(array[types]).decode, slice(None), all_hold
    return (cls, Decoder(array[types]).decode, *(rules[0] if rules else (0, None)))


_MOST_BYTES = limits.ENVELOPE_BYTES
_MOST_ITEMS = 2 * limits.PING_IDS
_PREFIX = bytes([VERSION])
_BEGINS = {bytes([VERSION, 0x91 + len(cls._fields), code]): _codec(cls) for code, cls in _CODES.items()}
"""By the first three bytes of an envelope, if its array and its code are written in the shortest way, as usual."""
_encode = Encoder().encode
_pack = msgpack.Packer().pack
_unpack = msgpack.unpackb
_new = tuple.__new__
_M = TypeVar("_M")


def _usual_fields(cls: type[Message]) -> tuple[tuple[str, int, int, bool], ...] | None:
    """The fields of a message for compiled code: kind, bounds, and whether only the bounds' lengths are allowed, for
    fields whose Rule says that. None if a field is of another kind or has another Rule."""
    usual = []
    for field in _FIELDS[cls]:
        kind, meta = field.type.__origin__, field.type.__metadata__[0]
        if kind not in _KINDS or field.rule not in (None, _EMPTY_OR_FULL):
            return None
        if kind is int:
            least, most = meta.ge, meta.le
        else:
            least, most = meta.min_length or 0, meta.max_length
        usual.append((_KINDS[kind], least, most, field.rule is not None))
    return tuple(usual)


_KINDS = {int: "i", bytes: "b", str: "s"}


def _unusual(_: object) -> None:
    """Without compiled code, no message is usual."""


_USUAL = {code: (cls, fields) for code, cls in _CODES.items() if (fields := _usual_fields(cls)) is not None}
_compiled: Any = None if native.wire is None else native.wire.Codecs(VERSION, _USUAL)
_decode_usual: Callable[[bytes], Any] = getattr(_compiled, "decode", _unusual)
_encode_usual: Callable[[Any], bytes | None] = getattr(_compiled, "encode", _unusual)


def encode(message: Message) -> bytes:
    """The envelope frame of a message."""
    usual = _encode_usual(message)
    if usual is not None:
        return usual
    fields = (CODES[type(message)], *message)
    try:
        return _PREFIX + _encode(fields)
    except TypeError:  # msgspec knows no subclasses: a caller may name a model by NumPy's kind of string
        return _PREFIX + _pack(fields)  # type: ignore[no-any-return]


_DISPATCH = bytes([VERSION, 0x91 + len(Dispatch._fields), CODES[Dispatch]])
_read_dispatch = _BEGINS[_DISPATCH][1]
_DONE = CODES[Done]


def read_dispatch(frame: bytes) -> tuple[int, bytes, int, int, str, int, int] | None:
    """The code and the fields of a Dispatch. None for a frame that `decode` is to look at: another message, or one that
    is wrong or written in a longer way.

    For a worker under load: to make a message of the fields takes as long as to read them.
    """
    if frame[:3] == _DISPATCH and len(frame) <= _MOST_BYTES:
        try:
            return _read_dispatch(frame[1:])
        except (DecodeError, UnicodeDecodeError):
            pass
    return None


def encode_done(session: bytes, id: int, attempt: int, compute_us: int, rows: int, batch: int) -> bytes:
    """`encode` of a Done with these fields, sooner."""
    return _PREFIX + _encode((_DONE, session, id, attempt, compute_us, rows, batch))


def decode(frame: bytes, expected: frozenset[type[_M]]) -> _M:
    """Decode an envelope frame to a message of one of the classes in `expected`.

    Raises ProtocolError for any other frame. The error's `key` names the request if the envelope does, so that the
    sender can be answered.
    """
    usual = _decode_usual(frame)
    if type(usual) in expected:
        return usual  # type: ignore[no-any-return]
    codec = _BEGINS.get(frame[:3])
    if codec is not None and codec[0] in expected and len(frame) <= _MOST_BYTES:
        cls, read, at, rule = codec
        try:
            values = read(frame[1:])
        except (DecodeError, UnicodeDecodeError):
            pass  # the long way finds out what is wrong
        else:
            if rule is None or rule(values[at]):
                message: _M = _new(cls, values[1:])  # cls._make would check the length again
                return message
    return _decode(frame, expected)


def _decode(frame: bytes, expected: frozenset[type[_M]]) -> _M:
    """Decode an envelope that is wrong, or written in a longer way."""
    if not 2 <= len(frame) <= _MOST_BYTES:
        raise ProtocolError(f"an envelope has 2 to {_MOST_BYTES} bytes, not {len(frame)}")
    if frame[0] != VERSION:
        raise ProtocolError(f"protocol version {frame[0]} is not supported; use version {VERSION}")
    try:  # without a limit for maps, which msgpack does not allocate ahead
        values = _unpack(frame[1:], strict_map_key=False, max_array_len=_MOST_ITEMS)
    except Exception as error:
        raise _not_msgpack("an envelope", error) from None
    if type(values) is not list or not values or type(code := values.pop(0)) is not int:
        raise ProtocolError("an envelope is an array that begins with the message's code")
    cls: Any = _CODES.get(code)
    if cls not in expected:
        what = f"message code {code}" if cls is None else cls.__name__
        raise ProtocolError(f"unexpected {what}: clients connect to the broker's frontend, workers to its backend")
    fields = _FIELDS[cls]
    if len(values) != len(fields):
        raise ProtocolError(f"{cls.__name__} has {len(fields)} fields, not {len(values)}")
    for at, (field, value) in enumerate(zip(fields, values, strict=True)):
        if not field.allows(value):
            fault = ProtocolError(f"{cls.__name__}: field {field.name!r} cannot be {shown(value)}")
            if at > 1 and cls._fields[:2] == ("session", "id"):
                fault.key = (values[0], values[1])
            raise fault
    message: _M = _new(cls, values)
    return message


def unpack(data: bytes | memoryview, what: str, items: int) -> object:
    """Decode msgpack with at most `items` in each array or map; the caller has bounded the size of `data`.

    Raises ProtocolError, which calls the data `what`.
    """
    try:
        return _unpack(data, strict_map_key=False, max_array_len=items, max_map_len=items)
    except Exception as error:
        raise _not_msgpack(what, error) from None


def _not_msgpack(what: str, error: Exception) -> ProtocolError:
    """msgpack raises ValueErrors of many kinds, UnicodeDecodeError, StackError, ..."""
    return ProtocolError(f"{what} is not msgpack: {type(error).__name__}")


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80


def shown(value: object) -> str:
    """A short `repr` of a peer's value for an error's text; safe for values nested deeper than `repr` can follow."""
    return _SHORT.repr(value)
