"""Replace the CUDA C++ in a library's imported modules by machine code.

Without CUDA's runtime TVM compiles nothing for a GPU: it packs the source, and has the machine that loads the library
compile it. A worker has no compiler.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from zmq_offload.errors import Internal

_KIND = struct.pack("<Q", 4) + b"cuda"
"""A string as TVM writes it, with its length: the kind of a module, and the format of its code."""

_FORMAT = struct.pack("<Q", 5) + b"cubin"


def with_machine_code(packed: bytes, compiled: Callable[[str], bytes]) -> bytes:
    """The packed modules with `compiled(source)` in place of the source; the same bytes if they hold no source.

    TVM writes the number of all bytes that follow, and for each module its kind and its bytes, with their number. Those
    of a module for CUDA are the format of its code, a table of functions, and the code, with its number of bytes.
    """
    at = packed.find(_KIND)
    while at >= 0:
        start = at + len(_KIND) + 8
        if packed.startswith(_KIND, start):
            break
        at = packed.find(_KIND, at + 1)
    if at < 0:
        return packed
    (size,) = struct.unpack_from("<Q", packed, start - 8)
    end = start + size
    code = _code(packed, start, end)
    table = packed[start + len(_KIND) : code - 8]
    made = compiled(packed[code:end].decode())
    module = _FORMAT + table + struct.pack("<Q", len(made)) + made
    rest = packed[8 : start - 8] + struct.pack("<Q", len(module)) + module + packed[end:]
    return struct.pack("<Q", len(rest)) + rest


def _code(packed: bytes, start: int, end: int) -> int:
    """Where the code begins: the last place before a text that ends with the module, and that has its number of bytes
    in front of it."""
    at = packed.find(b"\n#ifdef __CUDACC_RTC__", start, end)
    if at < 0 or struct.unpack_from("<Q", packed, at - 8)[0] != end - at:
        raise Internal("TVM packs modules for CUDA in another way than this release knows; use the TVM that it names")
    return at
