"""Splits a Mask R-CNN, compiles both halves, and writes the heads as a model repository for Triton."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from examples.mask_rcnn.model import FEATURES, OUTPUTS, SMALL, mask_rcnn
from zmq_offload.compile import compile_module, cut_module
from zmq_offload.console.programs import run
from zmq_offload.export import export_to_triton


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.triton.make", description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path("dist/triton"), help="folder to write")
    parser.add_argument("--small", action="store_true", help="a network for tests")
    args = parser.parse_args(argv)
    return run(lambda: make(args.output, args.small), "make")


def make(output: Path, small: bool) -> None:
    split = cut_module(mask_rcnn(SMALL if small else None), FEATURES)
    compiled = compile_module(split, name="heads", outputs=OUTPUTS, output=output, force=True)
    (heads,) = export_to_triton(output / "repository", output / "models", force=True)
    print(f"{compiled.device}: the backbone, for the device")
    print(f"{heads.folder}: the heads, for Triton")


if __name__ == "__main__":
    raise SystemExit(main())
