"""Search for a faster schedule of one function with MetaSchedule. A `Measurer` compiles and times the candidates."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import tvm
from tvm.ir import IRModule
from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule as ms
from tvm.target import Target

from zmq_offload.compile.tuning.measurer import Measurer
from zmq_offload.compile.tuning.tvm_internals import cpu_intrinsics_only, failed, measured, quiet

# Samples from which MetaSchedule evolves candidates, over four generations. TVM's default is 512, for thousands of
# trials; with the few trials here, searching would take longer than measuring.
POPULATION = 128


def search(
    module: IRModule,
    target: Target,
    database: ms.database.Database,
    measurer: Measurer,
    *,
    trials: int,
    seed: int,
    logs: Path,
    stopped: Callable[[], bool] = lambda: False,
) -> int:
    """Try up to `trials` schedules of the function `main` and add the measurements to MetaSchedule's `database`.

    Once `stopped` returns True, remaining candidates are skipped. Returns the number of candidates tried.
    """
    runner = _Measure(measurer, stopped)
    with cpu_intrinsics_only(), quiet(), tempfile.TemporaryDirectory() as folder:
        ms.tune_tir(
            module,
            target,
            work_dir=str(logs),
            max_trials_global=trials,
            num_trials_per_iter=trials,
            builder=_Save(Path(folder)),
            runner=runner,
            database=database,
            # Without xgboost (extra `tune`) candidates are random, and the fastest one measured is kept.
            cost_model="xgb" if importlib.util.find_spec("xgboost") else "random",
            strategy=ms.search_strategy.EvolutionarySearch(population_size=POPULATION),
            num_tuning_cores="logical",
            seed=seed,
        )
    return int(runner.tried)


@derived_object
class _Save(ms.builder.PyBuilder):  # type: ignore[misc]  # TVM has no types
    """A builder that saves candidates. The process that times a candidate also compiles it."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def build(self, build_inputs: Sequence[ms.builder.BuilderInput]) -> list[ms.builder.BuilderResult]:
        results = []
        for candidate in build_inputs:
            # MetaSchedule removes the folder of a candidate after its use, so that each needs its own.
            file = Path(tempfile.mkdtemp(dir=self._folder)) / "candidate.json"
            file.write_text(tvm.ir.save_json(candidate.mod))
            results.append(ms.builder.BuilderResult(str(file), None))
        return results


@derived_object
class _Measure(ms.runner.PyRunner):  # type: ignore[misc]
    """A runner that has candidates timed by a `Measurer`."""

    def __init__(self, measurer: Measurer, stopped: Callable[[], bool]) -> None:
        super().__init__()
        self._measurer = measurer
        self._stopped = stopped
        self.tried = 0

    def run(self, runner_inputs: Sequence[ms.runner.RunnerInput]) -> list[ms.runner.RunnerFuture]:
        return [self._one(Path(candidate.artifact_path)) for candidate in runner_inputs]

    def _one(self, artifact: Path) -> ms.runner.RunnerFuture:
        if self._stopped():
            return failed("tuning was interrupted")
        self.tried += 1
        try:
            return measured(self._measurer.seconds(artifact.read_text()))
        except RuntimeError as why:
            return failed(str(why))
