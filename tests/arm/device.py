"""What a device does, as its commands come: `python3 device.py BUNDLE BROKER FRAMES COMMANDS`.

FRAMES is a file of NumPy with one frame for each index, COMMANDS a pipe. A command is a line:

    call MODE FILE          run the model on one frame after the other, and write the results
    map DEPTH FILE          run it on a stream of them, tell of each result, and write the results
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterable

import numpy as np

import zmq_offload


def main(bundle: str, broker: str, frames: str, commands: str) -> None:
    items = np.load(frames)
    tell("machine", platform.machine())
    with open(commands) as lines:
        for line in lines:
            command, how, file = line.split()
            if command == "call":
                assert "tvm" not in sys.modules  # a device has the runtime, not the compiler
                with zmq_offload.load(bundle, broker, offload=how, timeout=60) as model:
                    write(file, map(model, items))
                    counts = model.statistics
                tell("called", how, counts.offloaded, counts.local, counts.fell_back, counts.failed)
            else:
                results = []
                with zmq_offload.load(bundle, broker, timeout=60) as model:
                    for at, result in enumerate(model.map(items, depth=int(how))):
                        results.append(result)
                        tell("item", at)
                write(file, results)
                tell("mapped")


def write(file: str, results: Iterable[np.ndarray]) -> None:
    np.save(file, np.stack(list(results)))


def tell(*words: object) -> None:
    print(*words, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
