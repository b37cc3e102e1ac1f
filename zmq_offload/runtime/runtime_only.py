"""TVM's Python package without its compiler, for what needs the package, such as TVM's RPC server. Call `use` before
the package is imported first. Running a library needs no package (see `tvm_library`)."""

from __future__ import annotations

import os

VARIABLE = "TVM_USE_RUNTIME_LIB"
"""TVM reads it when it is imported. `tvm.relax` cannot be imported then."""


def use() -> None:
    """Have this process load TVM's runtime library only, unless the user decided otherwise."""
    os.environ.setdefault(VARIABLE, "1")
