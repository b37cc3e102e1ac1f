from collections.abc import Mapping, Sequence
from typing import Any

def split(
    view: memoryview,
    at: int,
    stop: int,
    most: int,
    room: int,
    frames: list[Any],
    messages: list[list[Any]],
    turn: int,
    /,
) -> tuple[int, list[Any]]: ...
def append(buffers: list[Any], frames: Sequence[bytes | memoryview], /) -> int: ...

class Codecs:
    def __init__(
        self, version: int, codecs: Mapping[int, tuple[type, tuple[tuple[str, int, int, bool], ...]]]
    ) -> None: ...
    def decode(self, frame: bytes, /) -> Any: ...
    def encode(self, message: object, /) -> bytes | None: ...
