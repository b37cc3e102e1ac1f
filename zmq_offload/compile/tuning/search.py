"""MetaSchedule as it is used here: candidates for one function, compiled and timed by a `Measurer`."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tvm
from tvm.ir import IRModule
from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule as ms
from tvm.s_tir.meta_schedule.runner.local_runner import LocalRunnerFuture
from tvm.target import Target

from zmq_offload.compile.tuning.measurer import Measurer

# MetaSchedule evolves its candidates from so many samples, by four generations. TVM's default is 512, for trials by the
# thousand: here the search would take longer than compiling and timing what it finds.
POPULATION = 128


def search(
    module: IRModule,
    target: Target,
    database: Any,
    measurer: Measurer,
    *,
    trials: int,
    seed: int,
    logs: Path,
    stopped: Callable[[], bool] = lambda: False,
) -> int:
    """Try `trials` schedules of the function `main`; what was measured is added to MetaSchedule's `database`. Once
    `stopped` says so, the candidates that are left are not measured. Returns how many were tried."""
    runner = _Measure(measurer, stopped)
    with _cpu_intrinsics_only(), _quiet(), tempfile.TemporaryDirectory() as folder:
        ms.tune_tir(
            module,
            target,
            work_dir=str(logs),
            max_trials_global=trials,
            num_trials_per_iter=trials,
            builder=_Save(Path(folder)),
            runner=runner,
            database=database,
            # Without xgboost (the extra `tune`) candidates are drawn at random, and the measured best is kept.
            cost_model="xgb" if importlib.util.find_spec("xgboost") else "random",
            strategy=ms.search_strategy.EvolutionarySearch(population_size=POPULATION),
            num_tuning_cores="logical",
            seed=seed,
        )
    return int(runner.tried)


@derived_object
class _Save(ms.builder.PyBuilder):  # type: ignore[misc]  # TVM has no types
    """Compiles nothing: the process that times a candidate compiles it, too."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def build(self, build_inputs: list[Any]) -> list[Any]:
        results = []
        for candidate in build_inputs:
            # A folder for each: MetaSchedule removes the one that a candidate is in when it is done with it.
            file = Path(tempfile.mkdtemp(dir=self._folder)) / "candidate.json"
            file.write_text(tvm.ir.save_json(candidate.mod))
            results.append(ms.builder.BuilderResult(str(file), None))
        return results


@derived_object
class _Measure(ms.runner.PyRunner):  # type: ignore[misc]
    def __init__(self, measurer: Measurer, stopped: Callable[[], bool]) -> None:
        super().__init__()
        self._measurer = measurer
        self._stopped = stopped
        self.tried = 0

    def run(self, runner_inputs: list[Any]) -> list[Any]:
        return [self._one(Path(candidate.artifact_path)) for candidate in runner_inputs]

    def _one(self, artifact: Path) -> Any:
        if self._stopped():
            return LocalRunnerFuture(error_message="tuning was interrupted")
        self.tried += 1
        try:
            return LocalRunnerFuture(res=[self._measurer.seconds(artifact.read_text())])
        except RuntimeError as why:
            return LocalRunnerFuture(error_message=str(why))


@contextlib.contextmanager
def _cpu_intrinsics_only() -> Iterator[None]:
    """While it lasts, importing TVM's tensor intrinsics leaves out the GPUs'.

    MetaSchedule imports them all, and TVM 0.27 takes 16 s to parse those for CUDA, ROCm and Hexagon, which no CPU has.
    """
    package = "tvm.s_tir.tensor_intrin"
    absent = [n for n in (f"{package}.{m}" for m in ("cuda", "rocm", "hexagon")) if n not in sys.modules]
    if package in sys.modules:
        absent = []
    for name in absent:
        sys.modules[name] = types.ModuleType(name)
    try:
        importlib.import_module(package)
        yield
    finally:
        for name in absent:
            del sys.modules[name]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """MetaSchedule prints a page of tables for every round; its files in the folder for logs have them, too."""
    noise = logging.getLogger("tvm.s_tir.meta_schedule")
    level = noise.level
    noise.setLevel(logging.WARNING)
    try:
        yield
    finally:
        noise.setLevel(level)
