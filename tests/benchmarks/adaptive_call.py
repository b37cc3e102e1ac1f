"""What choosing a split costs an item: `python -m tests.benchmarks.adaptive_call`.

One process calls two models in turns of 50 calls, through a broker on this machine: a bundle with one cut, and an
adaptive bundle of the same network with several splits. CPU time of the calling process, its system calls included.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from tests.support import onnx_models
from tests.support.processes import eventually, running_broker, running_workers
from zmq_offload import Client, load
from zmq_offload.compile import compile_model

_TURN = 50
CUTS = ["x", "h1", "h2", "h4"]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.adaptive_call", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=60, help=f"of {_TURN} calls of each model")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="adaptive-call-") as name, ExitStack() as stack:
        folder = Path(name)
        file, repository = onnx_models.mlp(folder / "mlp.onnx"), folder / "repository"
        options: dict[str, Any] = {"inputs": {"x": (2, 8)}, "repository": repository, "with_fallback": True}
        one = compile_model(file, cut="h2", name="one", output=folder / "one", **options)
        several = compile_model(file, cuts=CUTS, name="several", output=folder / "several", **options)
        broker = stack.enter_context(running_broker())
        stack.enter_context(running_workers(broker.backend, "--repository", str(repository), "--threads", "1"))
        client = stack.enter_context(Client(broker.frontend))
        eventually(lambda: len(client.models()) == 1 + len(CUTS), 60)
        models = {
            "one cut": stack.enter_context(load(one.device, broker.frontend)),
            "one split of several": stack.enter_context(load(several.device, broker.frontend, split="h2")),
            f"the best of {len(CUTS)} splits": stack.enter_context(load(several.device, broker.frontend)),
            "or the device": stack.enter_context(load(several.device, broker.frontend, offload="auto")),
        }
        x = np.random.default_rng(0).random((2, 8), np.float32)
        times: dict[str, list[float]] = {name: [] for name in models}
        for number in range(args.rounds + 1):
            for name, model in models.items():
                began = time.process_time()
                for _ in range(_TURN):
                    model(x)
                if number:  # the first round is a warm-up
                    times[name].append((time.process_time() - began) / _TURN * 1e6)
        print("| model | CPU time of a call, us |")
        print("|---|---|")
        for name, found in times.items():
            print(f"| {name} | {median(found):.0f} |")
        print(models["one split of several"].statistics)


if __name__ == "__main__":
    main()
