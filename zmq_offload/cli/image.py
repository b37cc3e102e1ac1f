"""`zmq-offload image`: write all that a device needs into a folder."""

from __future__ import annotations

import argparse

from zmq_offload.compile.interrupt import stoppable
from zmq_offload.console import settings
from zmq_offload.console.parser import Parser
from zmq_offload.console.settings import checked
from zmq_offload.console.tables import show
from zmq_offload.export.image import MACHINES, PACKAGES, RUN, Image, write_image

version = checked(str, lambda text: text.isascii() and text[:2] == "3." and text[2:].isdigit() and len(text) == 4,
                  "a version of Python such as 3.11")  # fmt: skip
requirement = checked(str, lambda text: text[:1].isalnum(), "a requirement such as 'numpy<2'")


def add_options(parser: Parser) -> None:
    parser.description = (
        "Write a device image: a folder with zmq-offload, TVM's runtime without the compiler, and what they need, for "
        "the Python that the device has. The packages come from PyPI, by pip, as wheels for the device."
    )
    parser.set_example(
        "zmq-offload image raspberry --bundle dist/device",
        "zmq-offload image raspberry --python 3.13 \\\n    --without numpy",
    )
    parser.add_argument("output", type=settings.folder, metavar="OUT", help="folder to write")
    parser.add_argument(
        "--machine",
        choices=MACHINES,
        default="aarch64",
        help="the device's machine, as `uname -m` prints it (default: aarch64)",
    )
    parser.add_argument(
        "--python", type=version, default="3.11", metavar="VERSION", help="the device's Python (default: 3.11)"
    )
    parser.add_argument("--bundle", type=settings.folder, metavar="FOLDER", help="device bundle to put in")
    parser.add_argument(
        "--with",
        dest="more",
        type=requirement,
        action="append",
        default=[],
        metavar="REQUIREMENT",
        help="another package, or a bound such as 'numpy<2'; repeat it",
    )
    parser.add_argument(
        "--without",
        type=requirement,
        action="append",
        default=[],
        metavar="PACKAGE",
        help="a package that the device's system has; repeat it",
    )
    parser.add_argument(
        "--wheels", type=settings.folder, metavar="FOLDER", help="folder with the wheels, in place of PyPI"
    )
    parser.add_argument("--force", action="store_true", help="replace OUT if it is an image")
    parser.set_defaults(run=stoppable(run))


def run(args: argparse.Namespace) -> int:
    image = write_image(
        args.output,
        machine=args.machine,
        python=args.python,
        bundle=args.bundle,
        wheels=args.wheels,
        more=args.more,
        without=args.without,
        force=args.force,
    )
    show(*_described(image))
    return 0


def _described(image: Image) -> list[str]:
    total = sum(image.sizes.values())
    largest = sorted(image.sizes.items(), key=lambda package: -package[1])
    lines = [f"{image.folder}  ({total / 1e6:.1f} MB)"]
    lines += [f"  {size / 1e6:6.1f} MB  {name}" for name, size in largest]
    lines.append(f"copy it to the device; {image.folder.name}/{RUN} app.py runs a program there")
    if not image.compiled:
        lines.append(f"once on the device, for a faster start: {RUN} -m compileall -q {PACKAGES}")
    return lines
