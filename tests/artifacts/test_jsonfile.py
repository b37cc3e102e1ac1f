"""JSON files: what does not fit is named by its key, with its value and what would be right."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import msgspec
import pytest

from zmq_offload.artifacts import jsonfile
from zmq_offload.errors import InvalidArgument


class Part(msgspec.Struct, forbid_unknown_fields=True):
    size: Annotated[int, msgspec.Meta(ge=1, le=9)]
    way: int | Literal["latest"] = 1

    def __post_init__(self) -> None:
        if self.size == 7:
            raise InvalidArgument("size 7 is taken; use another")


class Whole(msgspec.Struct):
    parts: tuple[Part, ...]
    times: dict[str, tuple[float, ...]] = {}
    kind: Literal["x", "y"] = "x"


def check(value: Any) -> str:
    with pytest.raises(InvalidArgument) as caught:
        jsonfile.convert(value, Whole)
    return str(caught.value)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({}, "key 'parts' is missing"),
        ({"parts": {"size": 1}}, "parts is {'size': 1}; expected array"),
        ({"parts": [{}]}, "parts[0]: key 'size' is missing"),
        ({"parts": [{"size": 1}, {"size": "1"}]}, "parts[1].size is '1'; expected int"),
        ({"parts": [{"size": 1.0}]}, "parts[0].size is 1.0; expected int"),
        ({"parts": [{"size": True}]}, "parts[0].size is True; expected int"),
        ({"parts": [{"size": 0}]}, "parts[0].size is 0; expected int >= 1"),
        ({"parts": [{"size": 2**70}]}, f"parts[0].size is {2**70}; expected int <= 9"),
        ({"parts": [{"size": 7}]}, "parts[0]: size 7 is taken; use another"),
        ({"parts": [{"size": 1, "sise": 2}]}, "parts[0]: key 'sise' is not known"),
        ({"parts": [{"size": 1, "way": "last"}]}, "parts[0].way is 'last'; expected int or 'latest'"),
        ({"parts": [], "kind": "z"}, "kind is 'z'; expected 'x' or 'y'"),
        ({"parts": [], "times": {"a": ["1"]}}, "times[...][0]: expected float"),
        (3, "it is 3; expected object"),
    ],
)
def test_the_key_its_value_and_what_would_be_right_are_named(value: Any, says: str) -> None:
    assert check(value) == says


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b'{"a": "\xff"}', "is not JSON"),
        (b'{"a": "\\ud800"}', "is not JSON"),
        (b'{"a": NaN}', "is not JSON"),
        (b'{"a": 1e999}', "is not JSON"),
        (b"[" * 100_000, "is nested too deeply"),
        (b"[]", r"is not a JSON object: \[\]"),
        (b"3", "is not a JSON object: 3"),
    ],
)
def test_what_is_not_an_object_is_refused(content: bytes, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        jsonfile.parse(content)


@pytest.mark.parametrize("found", [2, None, "1", True, 1.0])
def test_another_format_version_is_refused(found: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"format_version is .*, this release reads 1"):
        jsonfile.check_format_version({"format_version": found}, 1)


def test_what_is_written_is_read_by_any_json_library() -> None:
    value = {"name": "größe", "shape": [-1, 3], "none": None, "seconds": 1e-7}
    content = jsonfile.encode(value)
    assert json.loads(content) == jsonfile.parse(content) == jsonfile.parse(b"\xef\xbb\xbf" + content) == value
    assert content.endswith(b"}\n") and b'\n  "name"' in content


def test_values_of_subclasses_are_written_as_their_base_type() -> None:
    """TVM's strings are a subclass of str."""

    class Text(str):
        pass

    class Number(int):
        pass

    class Named(msgspec.Struct):
        name: str
        target: Any

    named = Named(Text("a"), {Text("kind"): Text("llvm"), "cores": [Number(2)]})
    assert jsonfile.encode(jsonfile.to_object(named)) == jsonfile.encode(
        {"name": "a", "target": {"kind": "llvm", "cores": [2]}}
    )
    with pytest.raises(NotImplementedError, match="object is not JSON"):
        jsonfile.to_object(Named("a", object()))
