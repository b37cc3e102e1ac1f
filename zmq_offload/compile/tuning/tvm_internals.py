"""Every use of TVM's internals in tuning: MetaSchedule's results, its imports and its log.

`tests/compile/test_internals.py` compares them with the installed TVM, and fails where a new release changes them.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import sys
import types
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # takes as long to import as all the rest
    from tvm.s_tir.meta_schedule.runner import RunnerFuture

INTRINSICS = "tvm.s_tir.tensor_intrin"
_GPUS = ("cuda", "rocm", "hexagon")


def measured(seconds: float) -> RunnerFuture:
    """The result of a candidate that ran."""
    from tvm.s_tir.meta_schedule.runner.local_runner import LocalRunnerFuture

    return LocalRunnerFuture(res=[seconds])


def failed(why: str) -> RunnerFuture:
    """The result of a candidate that could not be measured."""
    from tvm.s_tir.meta_schedule.runner.local_runner import LocalRunnerFuture

    return LocalRunnerFuture(error_message=why)


@contextlib.contextmanager
def cpu_intrinsics_only() -> Iterator[None]:
    """Import TVM's tensor intrinsics without those for GPUs, which MetaSchedule would import in the body.

    TVM 0.27 takes 16 s to parse the ones for CUDA, ROCm and Hexagon. Empty modules stand in for them meanwhile.
    """
    absent = [n for n in (f"{INTRINSICS}.{m}" for m in _GPUS) if n not in sys.modules]
    if INTRINSICS in sys.modules:
        absent = []
    for name in absent:
        sys.modules[name] = types.ModuleType(name)
    try:
        importlib.import_module(INTRINSICS)
        yield
    finally:
        for name in absent:
            del sys.modules[name]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the tables that MetaSchedule prints for every round. Its log files keep them."""
    log = logging.getLogger("tvm.s_tir.meta_schedule")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(level)
