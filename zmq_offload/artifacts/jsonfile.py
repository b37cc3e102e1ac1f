"""JSON files, read and written by msgspec.

A `msgspec.Struct` says what a file holds. Content that does not fit raises InvalidArgument, which names the key by its
path, the value that was found and what would be right: "inputs[0].shape[1] is '3'; expected int".
"""

from __future__ import annotations

import re
import reprlib
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from zmq_offload.errors import InvalidArgument

T = TypeVar("T")
Json = dict[str, Any]

_PATH = re.compile(r"(?P<what>.*?)(?: - at `(?P<path>\$.*)`)?", re.DOTALL)
_STEP = re.compile(r"\.([^.\[]+)|\[(\d+)\]|(\[\.\.\.\])")
_MISSING = re.compile(r"Object missing required field `(.*)`")
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`")
_EXPECTED = re.compile(r"(Expected `.*?`.*?)(?:, got `.*`)?")
_CHOICE = re.compile(r"Invalid enum value .*", re.DOTALL)


def parse(content: bytes) -> Json:
    """The JSON object that a file holds. Raises InvalidArgument for anything else."""
    try:
        value = msgspec.json.decode(content.removeprefix(b"\xef\xbb\xbf"))  # an editor's byte order mark
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"it is not JSON: {str(error).removeprefix('JSON is malformed: ')}") from None
    except RecursionError:
        raise InvalidArgument("it is not JSON: it is nested too deeply") from None
    if not isinstance(value, dict):
        raise InvalidArgument(f"it is not a JSON object: {reprlib.repr(value)}")
    return value


def check_format_version(value: Json, known: int) -> None:
    """Raises InvalidArgument if an object is not of the `known` format version."""
    found = value.get("format_version")
    if type(found) is not int or found != known:
        raise InvalidArgument(f"format_version is {reprlib.repr(found)}, this release reads {known}")


def convert(value: Mapping[str, Any], kind: type[T]) -> T:
    """An object as a `kind`. Raises InvalidArgument that names the key that does not fit."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise InvalidArgument(_explain(str(error), value, kind)) from None


def to_object(value: msgspec.Struct) -> Json:
    """A Struct as a JSON object. Strings and numbers may be of a subclass, as TVM's strings are."""
    plain: Json = msgspec.to_builtins(value, enc_hook=_of_base_type)
    return plain


def _of_base_type(value: Any) -> Any:
    if isinstance(value, str):
        return str.__str__(value)
    bases: tuple[type[Any], ...] = (int, float, dict, list, tuple)
    for base in bases:
        if isinstance(value, base):
            return base(value)
    raise NotImplementedError(f"{type(value).__name__} is not JSON")


def encode(value: Json) -> bytes:
    """The content of a file: indented, with a newline at its end."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def _explain(text: str, value: Any, kind: Any) -> str:
    matched = _PATH.fullmatch(text)
    assert matched is not None  # as anything is
    what, path = matched["what"], matched["path"] or "$"
    where = path.removeprefix("$").removeprefix(".")
    at = f"{where}: " if where else ""
    if missing := _MISSING.fullmatch(what):
        return f"{at}key {missing[1]!r} is missing"
    if unknown := _UNKNOWN.fullmatch(what):
        return f"{at}key {unknown[1]!r} is not known"
    steps = [int(index) if index else name or None for name, index, _ in _STEP.findall(path)]
    if expected := _EXPECTED.fullmatch(what):
        right = expected[1].replace("`", "").replace("Expected", "expected")
    elif _CHOICE.fullmatch(what):
        right = f"expected {_choices(kind, steps)}"
    else:
        return at + what  # of a check of our own, which names the value
    if None in steps:  # a key of a map, which msgspec does not name
        return f"{where}: {right}"
    for step in steps:
        value = value[step]
    return f"{where or 'it'} is {reprlib.repr(value)}; {right}"


def _choices(kind: Any, steps: list[int | str | None]) -> str:
    """The values that a Literal, perhaps in a union, allows at a path."""
    for step in steps:
        kind = get_type_hints(kind)[step] if isinstance(step, str) else get_args(kind)[-1 if step is None else 0]
    union = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    found = [repr(v) for k in union if get_origin(k) is Literal for v in get_args(k)]
    return " or ".join([k.__name__ for k in union if isinstance(k, type)] + found)
