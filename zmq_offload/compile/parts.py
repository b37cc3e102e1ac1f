"""Compile the loops of a module to machine code a few functions at a time.

LLVM's form of a function takes many times the memory of its machine code. Of a network with a hundred kernels it took
more than all else, and was kept until the library was linked. Here that of a part is dropped when its machine code is
in a file.
"""

from __future__ import annotations

from pathlib import Path

import tvm
from tvm import relax, tirx
from tvm.ir.transform import Pass, PassContext, module_pass

from zmq_offload.byoc.joined import LIBRARIES
from zmq_offload.common.memory import trim
from zmq_offload.compile.lowering import TIR_PIPELINE

FUNCTIONS = 12
"""Functions of a part. A part costs some milliseconds of its own."""


def in_parts(target: tvm.target.Target, folder: Path, failed: list[str]) -> Pass:
    """A pass that replaces the lowered functions of a module by object files in `folder`.

    What it leaves cannot run in this process; export it as a library. If TVM fails, the names of the functions that it
    fails for are added to `failed`: its error does not tell them.
    """

    def compiled(mod: tvm.IRModule, _: PassContext) -> tvm.IRModule:
        functions = dict(mod.functions)
        loops = [(name, f) for name, f in functions.items() if isinstance(f, tirx.PrimFunc)]
        libraries = list((mod.attrs or {}).get(LIBRARIES, []))
        for start in range(0, len(loops), FUNCTIONS):
            part = dict(loops[start : start + FUNCTIONS])
            symbols = {name: str(f.attrs["global_symbol"]) for name, f in part.items()}
            file = str(folder / f"part{start}.o")
            try:
                tvm.tirx.build(tvm.IRModule(part), target, TIR_PIPELINE).write_to_file(file)
            except Exception:
                failed.extend(symbols[name] for name, f in part.items() if _fails({name: f}, target))
                raise
            trim()
            libraries.append(tvm.runtime.load_static_library(file, list(symbols.values())))
            functions |= {name: relax.ExternFunc(symbol) for name, symbol in symbols.items()}
        rest = tvm.IRModule(functions, attrs=mod.attrs, global_infos=mod.global_infos)
        return rest.with_attr(LIBRARIES, libraries)

    return module_pass(compiled, opt_level=0, name="zmq_offload.in_parts")


def _fails(part: dict[tvm.ir.GlobalVar, tirx.PrimFunc], target: tvm.target.Target) -> bool:
    try:
        tvm.tirx.build(tvm.IRModule(part), target, TIR_PIPELINE)
    except Exception:
        return True
    return False
