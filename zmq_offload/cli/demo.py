"""`zmq-offload demo`: run a split network on this machine."""

from __future__ import annotations

import argparse
import signal
from pathlib import Path

from zmq_offload.common.extras import needs
from zmq_offload.compile.interrupt import say_interrupted
from zmq_offload.console.parser import Parser
from zmq_offload.console.settings import checked, count
from zmq_offload.demo.model import CUT, find_model, find_package
from zmq_offload.errors import InvalidArgument

side = checked(int, lambda n: 32 <= n <= 4096, "a whole number from 32 to 4096")


def add_options(parser: Parser) -> None:
    parser.description = (
        "Detect text (PP-OCRv4) in pages or a picture, with the backbone on three devices and the rest on two workers, "
        "all on this machine. Shows the tensors on the wire, the times and the differences from the uncut model, and "
        "draws the text found."
    )
    parser.set_example("zmq-offload demo", "zmq-offload demo --image photo.jpg -o found.png")
    parser.add_argument("--image", type=Path, metavar="FILE", help="picture to read (default: pages of the demo)")
    parser.add_argument("--model", type=Path, metavar="FILE", help="network (default: PP-OCRv4's text detection)")
    parser.add_argument(
        "--cut",
        nargs="+",
        default=list(CUT),
        metavar="TENSOR",
        help="tensors to cut at (default: the backbone's outputs)",
    )
    parser.add_argument(
        "--side", type=side, default=448, metavar="N", help="longest side of the network's input (default: 448)"
    )
    parser.add_argument("--frames", type=count, default=9, metavar="N", help="inputs to run (default: 9)")
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="folder for compiled models (default: ~/.cache/zmq-offload)"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("zmq-offload-demo.png"),
        metavar="PNG",
        help="picture to write, or a folder for it (default: zmq-offload-demo.png)",
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.model is not None and not args.model.is_file():
        raise InvalidArgument(f"--model {args.model} is not a file; give an ONNX file")
    find_package()
    try:
        with needs("demo"):
            # Their first use would be a minute later.
            import onnxruntime  # noqa: F401
            from rapidocr_onnxruntime.ch_ppocr_det import utils  # noqa: F401

            from zmq_offload.compile import api  # noqa: F401
            from zmq_offload.demo.scene import Options, play
    except KeyboardInterrupt:
        say_interrupted()
        return 128 + signal.SIGINT
    model = args.model or find_model()

    options = Options(model, tuple(args.cut), args.image, args.side, args.frames, args.cache, args.output, args.quiet)
    return play(options)
