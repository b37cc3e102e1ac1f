"""`zmq-offload export`: write a model repository for another inference server."""

from __future__ import annotations

import argparse

from zmq_offload.compile.interrupt import stoppable
from zmq_offload.console import settings
from zmq_offload.console.parser import Parser
from zmq_offload.console.settings import checked, threads
from zmq_offload.console.tables import show
from zmq_offload.export.triton import Running
from zmq_offload.export.write import Exported, export_to_triton

instances = checked(int, lambda n: 1 <= n <= 1024, "a whole number from 1 to 1024")


def add_options(parser: Parser) -> None:
    parser.description = (
        "Write the models of a repository for another inference server. For Triton: a model repository for its Python "
        "backend, whose Python needs zmq-offload with TVM (pip install 'zmq-offload[tvm]')."
    )
    parser.set_example(
        "zmq-offload export --to triton dist/repository triton",
        "zmq-offload export --to triton dist/repository triton \\\n    --instances 4 --threads 1",
    )
    parser.add_argument("repository", type=settings.folder, metavar="REPOSITORY", help="model repository to read")
    parser.add_argument("output", type=settings.folder, metavar="OUT", help="model repository to write")
    parser.add_argument("--to", required=True, choices=("triton",), help="the inference server")
    parser.add_argument(
        "--model", action="append", default=[], metavar="NAME", help="a model to write; repeat it (default: all)"
    )
    parser.add_argument(
        "--instances",
        type=instances,
        default=1,
        metavar="N",
        help="instances of each model, each a process with a virtual machine (default: 1)",
    )
    parser.add_argument(
        "--threads",
        type=threads,
        metavar="N",
        help="TVM threads of each instance (default: the server's cores divided by the instances)",
    )
    parser.add_argument("--force", action="store_true", help="replace models that exist in OUT")
    parser.set_defaults(run=stoppable(run))


def run(args: argparse.Namespace) -> int:
    written = export_to_triton(
        args.repository,
        args.output,
        models=args.model,
        running=Running(args.instances, args.threads),
        force=args.force,
    )
    for model in written:
        show(*_described(model))
    return 0


def _described(model: Exported) -> list[str]:
    numbers = ", ".join(map(str, model.versions))
    batches = "" if model.batched else "; requests run one at a time"
    lines = [f"{model.folder}  (version {numbers}{batches})"]
    if model.left_out:
        left = ", ".join(map(str, model.left_out))
        lines.append(
            f"  left out: version {left}, with another signature than version {model.versions[-1]}; Triton has one "
            "for all versions of a model"
        )
    return lines
