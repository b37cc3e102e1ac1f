"""`zmq-offload compile`: split a model and compile both sides."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from zmq_offload.artifacts.manifest import check_policy
from zmq_offload.artifacts.repository import Batching
from zmq_offload.cli import cuts, quantize, where
from zmq_offload.cli.targets import ListTargets
from zmq_offload.common.extras import needs
from zmq_offload.common.units import counted
from zmq_offload.compile.interrupt import stoppable
from zmq_offload.console import settings
from zmq_offload.console.outputs import check_writable
from zmq_offload.console.parser import Parser
from zmq_offload.console.progress import Progress
from zmq_offload.console.settings import checked, count, microseconds
from zmq_offload.console.silence import add_verbose, silent
from zmq_offload.console.tables import Part, show

if TYPE_CHECKING:
    from zmq_offload.compile.api import Compiled
    from zmq_offload.compile.onnx.shapes import Dim
    from zmq_offload.compile.options import BuildOptions
    from zmq_offload.protocol.payload import Array

    Shapes: TypeAlias = Mapping[str, Sequence[Dim]]
    Samples: TypeAlias = Sequence[Mapping[str, Array] | Array]


_policy = checked(lambda text: check_policy(int(text) if text.isdecimal() else text), lambda _: True, "a version")


def add_options(parser: Parser) -> None:
    parser.description = (
        "Split a model at its tensors. DIR/device is the device bundle, DIR/repository the workers' model repository."
    )
    parser.set_example(
        "zmq-offload compile model.onnx --input x=1,3,320,320 --list-cuts",
        "zmq-offload compile model.onnx --input x=1,3,320,320 --cut features \\\n    --name ocr -o dist",
    )
    parser.add_argument("model", metavar="MODEL", help="a model file: ONNX, .pt2 (torch.export.save) or .tflite")
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="NAME=DIMS",
        help="input shape, e.g. x=1,3,320,320; a symbolic dimension is a name, a multiple of one, a sum or '?': "
        "x=N,3,8*H,8*W",
    )
    parser.add_argument("--list-cuts", action="store_true", help="list the possible cuts and exit")
    parser.add_argument("--list-targets", action=ListTargets, help="list the boards that a target can name and exit")
    parser.add_argument(
        "--svg",
        type=settings.path,
        metavar="FILE",
        help="with --list-cuts: draw the graph with its cuts, work and bytes, as SVG if FILE ends in .svg, else as PNG",
    )
    where.add_options(parser)
    _add_check_options(parser)
    quantize.add_options(parser)
    _add_output_options(parser)
    _add_build_options(parser)
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    add_verbose(parser)
    parser.set_defaults(run=stoppable(silent(run)), usage_error=parser.error)


def _add_check_options(parser: Parser) -> None:
    group = parser.add_argument_group("checks")
    group.add_argument(
        "--check",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="before anything is written, compare the results with another runtime (ONNX Runtime or onnx.reference, "
        "PyTorch, LiteRT); a difference is an error (default: --check)",
    )
    group.add_argument(
        "--check-input",
        nargs="+",
        metavar="FILE",
        help="inputs for the check: NAME=FILE.npy for each input, or FILE.npz with arrays by name (default: random)",
    )
    group.add_argument(
        "--wire-check",
        nargs="+",
        type=settings.file,
        metavar="FILE",
        help="inputs on which --wire's loss of accuracy is measured: FILE.npz with arrays by name, or FILE.npy for a "
        "single input (default: random)",
    )


def _add_output_options(parser: Parser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument(
        "-o", "--output", type=settings.folder, default="dist", metavar="DIR", help="output folder (default: dist)"
    )
    group.add_argument(
        "--repository", type=settings.folder, metavar="DIR", help="model repository (default: DIR/repository)"
    )
    group.add_argument(
        "--version",
        type=count,
        metavar="N",
        help="version number (default: 1; with --only-subgraph the next free one)",
    )
    asked = "version that the device asks for: latest, a number, or label:NAME (default: latest)"
    group.add_argument("--policy", type=_policy, metavar="P", help=asked)
    group.add_argument("--force", action="store_true", help="replace an existing version and device bundle")
    group.add_argument(
        "--new-signature",
        action="store_true",
        help="allow inputs or outputs that differ from the highest version's; devices built for that version cannot "
        "use the new one",
    )
    group.add_argument(
        "--only-subgraph",
        action="store_true",
        help="write a new version of the subgraph, for devices in use; DIR/device stays as it is",
    )


def _add_build_options(parser: Parser) -> None:
    group = parser.add_argument_group("how to build")
    group.add_argument(
        "--target",
        metavar="T",
        help="target of the workers, a name of --list-targets, TVM's JSON, or a GPU: cuda-sm80, cuda-sm86, cuda-sm89, "
        "cuda-sm90 or cuda-native (default: this CPU)",
    )
    group.add_argument(
        "--precision",
        choices=["float32", "float16"],
        default="float32",
        help="operands of convolutions and matrix products on a GPU; sums and all else stay float32 (default: float32)",
    )
    group.add_argument(
        "--device-target",
        metavar="T",
        help="target of the device, a name of --list-targets or TVM's JSON (default: this CPU)",
    )
    group.add_argument(
        "--with-fallback",
        action="store_true",
        help="put a fallback, with its weights, into the device bundle: the device can compute the region itself when "
        "workers are slow or unreachable",
    )
    group.add_argument(
        "--max-batch",
        type=count,
        metavar="N",
        help="maximum rows that workers run together (default: one request at a time)",
    )
    group.add_argument(
        "--batch-delay",
        type=microseconds,
        metavar="US",
        help="maximum microseconds that a request waits for others to join its batch (default: 0)",
    )
    group.add_argument(
        "--tune",
        type=count,
        metavar="TRIALS",
        help="measure TRIALS other schedules on this machine and use the faster ones; Ctrl-C stops tuning and builds "
        "with the best so far",
    )
    group.add_argument(
        "--tuning-db",
        type=settings.folder,
        metavar="DIR",
        help="folder for tuning results, which later builds use with or without --tune (default: DIR/tuning)",
    )


def run(args: argparse.Namespace) -> int:
    _check_usage(args, args.usage_error)
    with needs("compile"):
        from zmq_offload.compile import api
        from zmq_offload.compile.onnx import shapes
    given = shapes.parse_shapes(args.input)
    if args.list_cuts:
        check_writable(args.svg)
        points = api.list_cuts(args.model, inputs=given, picture=args.svg)
        show(cuts.table(points))
        if points.left_out:
            show(f"left out: {', '.join(f'{number} {reason}' for reason, number in points.left_out.items())}")
        if points.inputs:
            show(f"BYTES and OFFLOADED are those for {shapes.shape_options(points.inputs)}")
        return 0
    inputs = where.take_plan(args, given)
    check, wire_samples = _read_samples(args, inputs)
    progress = Progress(quiet=args.quiet)
    compiled = _compile(args, inputs, output=args.output, options=_build_options(args, progress), check=check)
    if compiled.quantized is not None:
        quantize.use(args, compiled.quantized)
    show(*_describe(compiled, bundle=not args.only_subgraph))
    wires = where.wires(args)
    if wires != ["float32"] or args.wire_check:
        _show_losses(args, inputs, compiled, wires, wire_samples, progress)
    return 0


def _check_usage(args: argparse.Namespace, error: Callable[[str], object]) -> None:
    where.check_usage(args, error)
    if args.svg is not None and not args.list_cuts:
        error("--svg needs --list-cuts")
    if args.batch_delay is not None and args.max_batch is None:
        error("--batch-delay needs --max-batch")
    if bool(args.quantize) != bool(args.calibrate):
        error("--quantize and --calibrate go together; give both")
    if args.policy is not None and args.only_subgraph:
        error("--policy is for the device bundle, which --only-subgraph keeps; leave one out")
    if args.check_input and not args.check:
        error("--check-input needs --check")


def _read_samples(args: argparse.Namespace, inputs: Shapes) -> tuple[bool | Samples, Samples]:
    """Read and check the inputs of the check and of the measurement of accuracy, before anything slow is done."""
    from zmq_offload.compile import accuracy
    from zmq_offload.compile.models.read import read_model

    check = accuracy.read_samples(args.check_input or ())
    wire_samples = [accuracy.read_sample(file) for file in args.wire_check or ()]
    if check or wire_samples:
        specs = read_model(args.model).inputs(inputs)
        for sample in (*check, *wire_samples):
            accuracy.named(sample, specs)
    return check or args.check, wire_samples


def _build_options(args: argparse.Namespace, progress: Progress) -> BuildOptions:
    from zmq_offload.compile.options import BuildOptions

    return BuildOptions(
        version=args.version,
        policy=args.policy or "latest",
        target=args.target,
        device_target=args.device_target,
        repository=args.repository,
        force=args.force,
        only_subgraph=args.only_subgraph,
        with_fallback=args.with_fallback,
        new_signature=args.new_signature,
        batching=None if args.max_batch is None else Batching(args.max_batch, args.batch_delay or 0),
        tune=args.tune or 0,
        tuning_db=args.tuning_db,
        precision=args.precision,
        progress=progress,
    )


def _compile(
    args: argparse.Namespace,
    inputs: Shapes,
    *,
    output: str | Path,
    options: BuildOptions | None = None,
    check: bool | Samples = False,
) -> Compiled:
    from zmq_offload.compile import accuracy, api

    return api.compile_model(
        args.model,
        inputs=inputs,
        **where.keywords(args),
        wire=args.wire or "float32",
        check=check,
        quantize=args.quantize,
        calibrate=accuracy.read_samples(args.calibrate or ()),
        options=options,
        output=output,
    )


def _describe(compiled: Compiled, *, bundle: bool) -> list[Part]:
    """The results for a person."""
    lines = [] if compiled.tuning is None else [f"tuning:   {compiled.tuning}"]
    for folder, model in zip(compiled.subgraphs, compiled.models, strict=True):
        lines.append(f"subgraph: {folder}  ({model.name} version {model.version})")
        lines.append(f"  takes   {'; '.join(map(str, model.inputs))}")
        lines.append(f"  returns {'; '.join(map(str, model.outputs))}")
    if bundle:
        manifest = compiled.manifest
        held = "the whole model" if manifest.local else "a fallback"
        sealed = "" if manifest.sealed else f"  (not sealed: it holds {held})"
        lines.append(f"device:   {compiled.device}{sealed}")
        if manifest.splits:
            lines.append(f"  splits  {'; '.join(split.name for split in manifest.splits)}")
    if compiled.quantized is not None:
        lines.append(f"int8:     {compiled.quantized}")
    if compiled.check is not None:
        lines.append(f"check:    {compiled.check}")
    return list(lines)


def _show_losses(
    args: argparse.Namespace,
    inputs: Shapes,
    compiled: Compiled,
    wires: Sequence[str],
    samples: Samples,
    progress: Progress,
) -> None:
    """Measure and print what the encodings cost in accuracy."""
    from zmq_offload.compile import accuracy

    with progress.step("compare with the uncut model"):
        given = [accuracy.named(sample, compiled.manifest.inputs) for sample in samples]
        losses = accuracy.measure_losses(
            args.model,
            compiled,
            given or [accuracy.random_sample(compiled.manifest.inputs)],
            inputs=inputs,
            again=lambda folder: _compile(args, inputs, output=folder),
        )
    on = counted(len(given), "given input") if given else "a random input"
    show(f"accuracy: {' and '.join(wires)} on the wire against the uncut model, on {on}")
    encoded = {split.name for split in compiled.manifest.splits if split.wire != "float32"}
    show(*(f"  {loss}" for loss in losses if not loss.way or loss.way in encoded))
