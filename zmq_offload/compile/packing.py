"""Put the weights of a library into an object file.

TVM makes one constant of LLVM's of them. LLVM copies it several times, and takes 3 s for 100 MB. Here its assembler
copies a file into a section.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import tvm
import tvm_ffi

from zmq_offload.compile.cuda.names import is_gpu
from zmq_offload.compile.cuda.nvrtc import machine_code
from zmq_offload.compile.cuda.packing import with_machine_code
from zmq_offload.compile.target import host_of, triple_of

Pack: TypeAlias = Callable[[tvm.runtime.Module, bool, str, str], str]

SYMBOL = "__tvm_ffi__library_bin"
"""Where TVM's loader looks for what a library imports: its bytecode, with the weights."""


def packer(target: tvm.target.Target) -> Pack | None:
    """What `export_library` calls to pack imported modules; None, for TVM's own way, where object files are not ELF."""
    return functools.partial(_pack, target) if "linux" in triple_of(target) else None


def _pack(target: tvm.target.Target, module: tvm.runtime.Module, _system: bool, prefix: str, folder: str) -> str:
    data, source, result = (Path(folder) / f"imports.{suffix}" for suffix in ("bin", "ll", "o"))
    packed = tvm_ffi.get_global_func("runtime.ModulePackImportsToTensor")(module)
    content = np.from_dlpack(packed).data
    if is_gpu(target):
        architecture = str(target.attrs["arch"])
        content = memoryview(with_machine_code(bytes(content), lambda source: machine_code(source, architecture)))
    data.write_bytes(content)
    size = data.stat().st_size
    del packed, content
    source.write_text(_module(target, prefix + SYMBOL, data, size))
    tvm_ffi.load_module(str(source)).write_to_file(str(result), "o")
    data.unlink()
    return str(result)


def _module(target: tvm.target.Target, symbol: str, data: Path, size: int) -> str:
    """A module in LLVM's language with the bytes of a file."""
    path = str(data).replace("\\", "\\\\").replace('"', '\\"')
    assembly = [
        '.section .rodata,"a",%progbits',
        f".globl {symbol}",
        ".p2align 6",
        f"{symbol}:",
        f'.incbin "{path}"',
        f".size {symbol}, {size}",
        f".type {symbol}, %object",
    ]
    lines = [
        f'target triple = "{triple_of(target)}"',
        *(f'module asm "{_escaped(line)}"' for line in assembly),
        "!llvm.module.flags = !{!0}",
        f'!0 = !{{i32 1, !"tvm_target", !"{_escaped(str(host_of(target)))}"}}',
    ]
    return "\n".join([*lines, ""])


def _escaped(text: str) -> str:
    """Text as a string of LLVM's language has it."""
    return "".join(chr(b) if 32 <= b < 127 and b not in b'"\\' else f"\\{b:02X}" for b in text.encode())
