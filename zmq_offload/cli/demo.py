"""`zmq-offload demo`."""

from __future__ import annotations

import argparse
import signal
from pathlib import Path
from typing import Any

from zmq_offload.common.extras import needs
from zmq_offload.compile.interrupt import say_interrupted
from zmq_offload.console.settings import checked, count
from zmq_offload.demo.model import CUT, find_model, find_package
from zmq_offload.errors import InvalidArgument

side = checked(int, lambda n: 32 <= n <= 4096, "a whole number from 32 to 4096")


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "demo",
        help="split a text detection network, run it over broker and workers here, and check the results",
        description="Text detection (PP-OCRv4) on rendered pages or a picture: the backbone runs on three devices, the "
        "rest on two workers behind a broker, all on this machine. Shows what crosses the wire, times, and differences "
        "from the uncut model, and draws the regions found.",
    )
    parser.add_argument("--image", type=Path, metavar="FILE", help="a picture to look at (default: rendered pages)")
    parser.add_argument("--model", type=Path, metavar="FILE", help="the network (default: PP-OCRv4's text detection)")
    parser.add_argument(
        "--cut", nargs="+", default=list(CUT), metavar="TENSOR", help="where to cut (default: the backbone's outputs)"
    )
    parser.add_argument(
        "--side", type=side, default=448, metavar="N", help="longest side of the network's input (default: 448)"
    )
    parser.add_argument("--frames", type=count, default=9, metavar="N", help="frames to run (default: 9)")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="folder for what is compiled (default: the user's)")
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
        raise InvalidArgument(f"--model {args.model}: there is no such file")
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
