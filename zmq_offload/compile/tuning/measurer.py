"""Compile and time candidates in a separate process, so that a crash or an endless loop does no harm.

As a program it reads lines of JSON from stdin (a module, a target) and answers each with a line (`seconds` or `error`).
TVM's own pool starts a process for every round, and each spends 16 s on importing intrinsics for GPUs. This process
keeps running and imports none of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
from typing import IO

import tvm
from tvm.target import Target

from zmq_offload.common.cores import usable_cores
from zmq_offload.console.programs import ROOT
from zmq_offload.schedules.machine import machine_of
from zmq_offload.schedules.measure import arguments, built, seconds

# Seconds for a candidate, compilation included. TVM's own runner has the same limit.
PATIENCE_S = 30.0
# Seconds after which the process ends by itself, in case its parent was killed.
_LAST_S = 2 * int(PATIENCE_S)
# Runs of a candidate. The fastest counts.
RUNS = 5


class Measurer:
    """The measuring process, started on first use and again after a crash. Close it, or use it with `with`."""

    def __init__(self, target: Target, *, patience: float = PATIENCE_S) -> None:
        self._target = str(target)
        self._threads = min(machine_of(target).threads, usable_cores())
        self._patience = patience
        self._process: subprocess.Popen[str] | None = None

    def seconds(self, module: str) -> float:
        """Time `main` of a module, given as text from tvm.ir.save_json, with random arguments, in seconds.

        Raises RuntimeError, with the reason, for a candidate that does not compile, crashes, or takes too long.
        """
        process = self._running()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps({"module": module, "target": self._target}) + "\n")
            process.stdin.flush()
            answer = self._answer(process.stdout)
        except BrokenPipeError:
            answer = ""
        if not answer:
            self.close()
            raise RuntimeError(f"the candidate crashed, or took longer than {self._patience:.0f} s")
        result = json.loads(answer)
        if "error" in result:
            raise RuntimeError(str(result["error"]))
        return float(result["seconds"])

    def close(self) -> None:
        """Kill the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            with process:  # closes the pipes
                process.wait()

    def __enter__(self) -> Measurer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            # The other process must find this package, also where it is not installed.
            here = str(ROOT)
            path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
            self._process = subprocess.Popen(
                [sys.executable, "-m", "zmq_offload.compile.tuning.measurer"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # TVM's warnings about invalid candidates
                text=True,
                env={**os.environ, "PYTHONPATH": path, "TVM_NUM_THREADS": str(self._threads)},
                start_new_session=True,  # Ctrl-C goes to the parent only, which finishes the round
            )
        return self._process

    def _answer(self, stream: IO[str]) -> str:
        with selectors.DefaultSelector() as selector:
            selector.register(stream, selectors.EVENT_READ)
            return stream.readline() if selector.select(self._patience) else ""


def answer(request: dict[str, str]) -> dict[str, float | str]:
    """Answer one request."""
    try:
        module = tvm.ir.load_json(request["module"])
        func = module["main"]
        tensors = arguments(func)
        if tensors is None:
            raise ValueError("a shape of the function is symbolic")
        return {"seconds": seconds(built(func, Target(json.loads(request["target"]))), tensors, RUNS)}
    except Exception as error:
        return {"error": " ".join(str(error).split())[:300]}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, even if a candidate never returns
    os.dup2(2, 1)  # output of libraries must not mix with the answers
    with contextlib.suppress(KeyboardInterrupt):
        for line in sys.stdin:
            signal.alarm(_LAST_S)
            print(json.dumps(answer(json.loads(line))), file=answers, flush=True)
            signal.alarm(0)


if __name__ == "__main__":
    main()
