"""A process that compiles candidates and times them, so that one that crashes or never ends takes nothing with it.

Run as a program it reads lines of JSON from stdin (a module, a target) and answers each with a line (`seconds`, or an
`error`). TVM's own pool starts a process for every round, and each imports the GPU's intrinsics, which takes 16 s; this
one stays and needs none of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
from typing import IO, Any

import tvm
from tvm.target import Target

from zmq_offload.common.cores import usable_cores
from zmq_offload.console.programs import ROOT
from zmq_offload.schedules.machine import machine_of
from zmq_offload.schedules.measure import arguments, built, seconds

# A candidate that takes longer than this, compiling included, is none. TVM's own runner gives up after as long.
PATIENCE_S = 30.0
# After this the process ends by itself: whoever would end it was killed before.
_LAST_S = 2 * int(PATIENCE_S)
# Runs of a candidate; the shortest counts.
RUNS = 5


class Measurer:
    """The process, started when first needed and again after a candidate killed it. Close it, or use it with `with`."""

    def __init__(self, target: Target, *, patience: float = PATIENCE_S) -> None:
        self._target = str(target)
        self._threads = min(machine_of(target).threads, usable_cores())
        self._patience = patience
        self._process: subprocess.Popen[str] | None = None

    def seconds(self, module: str) -> float:
        """Seconds that `main` of a module (as tvm.ir.save_json writes it) takes with random arguments.

        Raises RuntimeError saying why there are none: it does not compile, crashes, or takes too long.
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
        """End the process, whatever it is doing."""
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
            # What this process can import the other must find, too: also where nothing is installed.
            here = str(ROOT)
            path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
            self._process = subprocess.Popen(
                [sys.executable, "-m", "zmq_offload.compile.tuning.measurer"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # TVM's warnings about candidates that are none
                text=True,
                env={**os.environ, "PYTHONPATH": path, "TVM_NUM_THREADS": str(self._threads)},
                start_new_session=True,  # Ctrl-C is for the process that tunes: it ends the round first
            )
        return self._process

    def _answer(self, stream: IO[str]) -> str:
        with selectors.DefaultSelector() as selector:
            selector.register(stream, selectors.EVENT_READ)
            return stream.readline() if selector.select(self._patience) else ""


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """What the process says to one request."""
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
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, also where a candidate never comes back
    os.dup2(2, 1)  # whatever a library prints must not come between the answers
    with contextlib.suppress(KeyboardInterrupt):
        for line in sys.stdin:
            signal.alarm(_LAST_S)
            print(json.dumps(answer(json.loads(line))), file=answers, flush=True)
            signal.alarm(0)


if __name__ == "__main__":
    main()
