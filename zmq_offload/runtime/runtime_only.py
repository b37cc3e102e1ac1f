"""TVM without its compiler: half the memory and half the time to start. Call `use` before TVM is imported first."""

from __future__ import annotations

import os

VARIABLE = "TVM_USE_RUNTIME_LIB"
"""TVM reads it when it is imported. `tvm.relax` cannot be imported then."""


def use() -> None:
    """Have this process load TVM's runtime library only, unless the user decided otherwise."""
    os.environ.setdefault(VARIABLE, "1")
