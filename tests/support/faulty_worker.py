"""`python -m tests.support.faulty_worker`: echo workers that fail as the tensors of a request say.

The name of a tensor is the fault. `sleep`: compute for that many seconds. `hang`: never end. `kill`: end the process,
as a crash in a library would.

RENDEZVOUS names a folder. Requests for the models of a repository wait there until as many models as RENDEZVOUS_OF says
are requested at the same time; each leaves a file.

HOLD_LOADS names a file. While it exists, only the first version of a model finishes loading.

FAULTY_VERSION names a file with a version's number and "fails" or "slow": what the requests that it runs come to.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import workers.__main__
import workers.runner
import workers.serving
import workers.shortpath
import workers.supervisor
from workers.supervisor import Supervisor
from zmq_offload.errors import Internal
from zmq_offload.runtime import runtime_only


def wait_for_others(folder: Path, name: str, count: int) -> None:
    """Wait until `count` models have a file in the folder."""
    (folder / name).touch()
    while len(list(folder.iterdir())) < count:
        time.sleep(0.005)


def execute(jobs: Sequence[Any]) -> Any:
    folder = os.environ.get("RENDEZVOUS")
    for job in jobs:
        if folder:
            wait_for_others(Path(folder), job.executor.model.name, int(os.environ["RENDEZVOUS_OF"]))
        if "sleep" in job.tensors:
            time.sleep(float(job.tensors["sleep"]))
        while "hang" in job.tensors:
            time.sleep(1)
        if "kill" in job.tensors:
            os.kill(os.getpid(), signal.SIGKILL)
    return workers.serving.execute(jobs)


def hold_loads(file: Path) -> None:
    """Make versions after the first wait, at the end of their loading, until the file is gone."""
    import workers.executor

    init = workers.executor.GraphExecutor.__init__

    def held(self: Any, repository: Any, name: str, version: int, *others: Any) -> None:
        init(self, repository, name, version, *others)
        while version > 1 and file.exists():
            time.sleep(0.005)

    workers.executor.GraphExecutor.__init__ = held  # type: ignore[method-assign]


def break_version(file: Path) -> None:
    """Make the version that the file names fail, or take 20 ms longer."""
    import workers.executor

    run = workers.executor.GraphExecutor.run

    def broken(self: Any, requests: Any) -> Any:
        version, _, fault = file.read_text().partition(" ")
        if version == str(self.model.version):
            if fault == "fails":
                raise Internal("it is broken")
            time.sleep(0.02)
        return run(self, requests)

    workers.executor.GraphExecutor.run = broken  # type: ignore[method-assign]


class FaultySupervisor(Supervisor):
    """Starts this module, not `workers`, as its processes."""

    def __init__(self, config: Any, arguments: Sequence[str]) -> None:
        super().__init__(config, arguments)
        self._command = [sys.executable, "-m", "tests.support.faulty_worker", *arguments]


if __name__ == "__main__":
    if "HOLD_LOADS" in os.environ and workers.supervisor.PARENT_FD in os.environ:
        runtime_only.use()
        hold_loads(Path(os.environ["HOLD_LOADS"]))
    if "FAULTY_VERSION" in os.environ and workers.supervisor.PARENT_FD in os.environ:
        runtime_only.use()
        break_version(Path(os.environ["FAULTY_VERSION"]))
    workers.runner.execute = workers.shortpath.execute = execute  # type: ignore[assignment]
    workers.supervisor.Supervisor = FaultySupervisor  # type: ignore[misc]
    sys.exit(workers.__main__.main())
