"""Starts Triton with the heads, and runs pictures through the device bundle: the backbone here, the heads there."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from examples.triton.server import triton
from zmq_offload import load
from zmq_offload.console.programs import run


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.triton.serve", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("dist/triton"), help="what make wrote")
    parser.add_argument("--python", default=sys.executable, help="Python of the environment with nvidia-pytriton")
    parser.add_argument("--server", metavar="URL", help="a Triton that runs already, such as grpc://HOST:8001")
    parser.add_argument("--pictures", type=int, default=16)
    args = parser.parse_args(argv)
    return run(lambda: call(args.folder, args.python, args.server, args.pictures), "serve")


def call(folder: Path, python: str, server: str | None, pictures: int) -> None:
    with serving(folder, python, server) as url, load(folder / "device", server=url) as model:
        random = np.random.default_rng(0)
        items = [random.random(model.inputs[0].shape, "float32") for _ in range(pictures)]
        model(items[0])  # makes the virtual machines
        began = time.monotonic()
        for number, (boxes, labels, scores, _) in enumerate(model.map(items, depth=4)):
            print(f"picture {number}: label {labels[0]} with score {scores[0]:.3f} at {boxes[0].round().astype(int)}")
        print(f"{(time.monotonic() - began) / pictures * 1e3:.1f} ms a picture, the heads at {url}")


@contextmanager
def serving(folder: Path, python: str, server: str | None) -> Iterator[str]:
    """The URL of a Triton with the heads."""
    if server is not None:
        yield server
        return
    with tempfile.TemporaryDirectory() as scratch, triton(python, folder / "models", Path(scratch)) as running:
        yield f"grpc://{running.grpc}"


if __name__ == "__main__":
    raise SystemExit(main())
