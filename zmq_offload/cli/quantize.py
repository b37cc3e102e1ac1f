"""The options of `zmq-offload compile` that make an int8 model."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from zmq_offload.cli import where
from zmq_offload.console import settings
from zmq_offload.console.parser import Parser

if TYPE_CHECKING:
    from zmq_offload.compile.quantization.quantize import Quantized


def add_options(parser: Parser) -> None:
    group = parser.add_argument_group("quantization")
    group.add_argument(
        "--quantize",
        choices=("int8",),
        help="make an int8 model of a float32 one, DIR/MODEL.int8.onnx, and compile that; the loss of accuracy is "
        "measured",
    )
    group.add_argument(
        "--calibrate",
        nargs="+",
        type=settings.file,
        metavar="FILE",
        help="inputs as the model will see them, at least 2, better 100: FILE.npz with arrays by name, or FILE.npy for "
        "a single input; an array whose first extent is a multiple of the input's is several",
    )


def use(args: argparse.Namespace, quantized: Quantized) -> None:
    """Let what follows use the int8 model, and cut it as the compiled one is cut."""
    for region in where.places(args):
        for option in ("cut", "until"):
            if region.get(option):
                region[option] = [quantized.tensors[tensor] for tensor in region[option]]
    args.model, args.quantize, args.calibrate = quantized.file, None, None
