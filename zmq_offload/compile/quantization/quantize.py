"""Make an int8 model of a float32 one, with ONNX Runtime's quantization, and measure how accurate it is."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import onnx

from zmq_offload.common.extras import needs
from zmq_offload.common.units import counted
from zmq_offload.compile.accuracy import named
from zmq_offload.compile.onnx.file import read_onnx
from zmq_offload.compile.onnx.importer import model_inputs, simplify
from zmq_offload.compile.onnx.shapes import Dim, set_input_shapes
from zmq_offload.compile.quantization.quality import Quality, measure
from zmq_offload.compile.reference import CannotRun, Reference, open_reference
from zmq_offload.console.progress import Say, say_nothing
from zmq_offload.errors import FailedPrecondition, InvalidArgument, one_line
from zmq_offload.protocol.payload import Array
from zmq_offload.protocol.tensors import ANY, TensorSpec

PathLike: TypeAlias = str | os.PathLike[str]
Kind: TypeAlias = Literal["int8"]
Sample: TypeAlias = Mapping[str, Array]

FEWEST = 2
"""Samples that calibration needs at least. A range that one sample shows is too narrow for the next."""

HELD_OUT = 0.25
"""The part of the samples that measures the accuracy and does not calibrate, if there are ENOUGH."""

ENOUGH = 8

LEAST_DB = 10.0
"""The least ratio of signal to noise, in decibels, of each output: noise of a third of the signal."""

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
MOVES = ("Concat", "Flatten", "MaxPool", "Pad", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze")
SIMPLE = ("Add", "AveragePool", "Clip", "GlobalAveragePool", "Relu")


@dataclass(frozen=True)
class Quantized:
    """An int8 model and how accurate it is. Its text is what the command prints.

    Attributes
    ----------
    file : pathlib.Path
        The int8 model, an ONNX file.
    calibrated : int
        Number of samples that gave the ranges of the tensors.
    measured : int
        Number of samples on which the accuracy was measured.
    held_out : bool
        Whether those were others than the samples for calibration.
    outputs : tuple of Quality
        The accuracy of each output against the float32 model.
    tensors : mapping of str to str
        For each kept tensor, and each path of a module that was given for one, its quantized form, or its own name if
        it has none. A Relu or Clip becomes a part of the layer before it, and so a tensor between the two becomes the
        one after them.
    """

    file: Path
    calibrated: int
    measured: int
    held_out: bool
    outputs: tuple[Quality, ...]
    tensors: Mapping[str, str]

    def __str__(self) -> str:
        others = f"{counted(self.measured, 'other sample')}" if self.held_out else "the same"
        first = f"{self.file}, calibrated on {counted(self.calibrated, 'sample')}; against float32, on {others}"
        return "\n  ".join([first, *map(str, self.outputs)])


def quantize_model(
    model: PathLike,
    samples: Sequence[Sample | Array],
    output: PathLike,
    *,
    inputs: Mapping[str, Sequence[Dim]] | None = None,
    keep: Sequence[str] = (),
    check: bool = True,
    report: Say = say_nothing,
) -> Quantized:
    """Make an int8 model of a float32 ONNX model.

    Weights are quantized per channel, tensors by the range of values that the samples show. Products, convolutions
    and what is around them become int8; normalizations, softmax and other functions stay float32, and so do the
    additions of networks with attention. Tensors keep their names.

    Parameters
    ----------
    model : path
        ONNX file.
    samples : sequence of numpy.ndarray or mapping of str to numpy.ndarray
        Inputs as the model will see them, at least 2, better 100: an array for a model with one input, or arrays by
        input name. A sample whose first extent is a multiple of the model's is several samples.
    output : path
        ONNX file to write.
    inputs : mapping of str to sequence of int or str, optional
        Input shapes, as for `compile_model`.
    keep : sequence of str
        Tensors that must not be folded away, to cut at them.
    check : bool
        Refuse an int8 model with more noise than a third of the signal.
    report : callable
        Shows the progress.

    Returns
    -------
    Quantized
        The file, and the accuracy of each output. With 8 samples or more, a quarter of them measures it.

    Raises
    ------
    InvalidArgument
        Too few samples; samples that do not fit the model or are not finite; a model that is quantized already.
    FailedPrecondition
        ONNX Runtime is missing or cannot quantize the model; the int8 model is too inaccurate.

    Examples
    --------
    >>> quantized = quantize_model("m.onnx", pictures, "m.int8.onnx")  # doctest: +SKIP
    >>> print(quantized.outputs[0].decibels)  # doctest: +SKIP
    28.3
    """
    shapes = inputs or {}
    float_model = read_onnx(model)
    specs = model_inputs(float_model, shapes)
    chosen = _samples(samples, specs)
    fitting, others = _divided(chosen)
    set_input_shapes(float_model, shapes)
    _check_float(model, float_model)
    simple = simplify(float_model, keep)
    with needs("quantize"), _quiet():
        from onnxruntime import quantization

        readers = _reader(quantization, fitting, report)
        try:
            with tempfile.TemporaryDirectory(prefix="zmq-offload-quantize-") as scratch:
                source = Path(scratch) / "float32.onnx"
                onnx.save(simple, source)
                quantization.quantize_static(
                    str(source),
                    os.fspath(output),
                    readers,
                    quant_format=quantization.QuantFormat.QDQ,
                    op_types_to_quantize=_operators(simple),
                    per_channel=True,
                    activation_type=quantization.QuantType.QUInt8,
                    weight_type=quantization.QuantType.QInt8,
                )
        except Exception as error:
            raise FailedPrecondition(f"ONNX Runtime cannot quantize {os.fspath(model)}: {one_line(error)}") from error
    report("compare with float32", 0.9)
    qualities = _measured(model, output, others or fitting)
    if check:
        _check_quality(qualities)
    tensors = _quantized_names(simple, onnx.load(os.fspath(output), load_external_data=False), keep)
    return Quantized(Path(output), len(fitting), len(others or fitting), bool(others), qualities, tensors)


def _quantized_names(plain: onnx.ModelProto, quantized: onnx.ModelProto, tensors: Sequence[str]) -> dict[str, str]:
    """The quantized form of each tensor, as `Quantized` describes."""
    known = {o for node in quantized.graph.node for o in node.output}
    found = {}
    for tensor in tensors:
        name = tensor
        users = [n for n in plain.graph.node if name in n.input]
        while name not in known and len(users) == 1 and users[0].op_type in ("Relu", "Clip"):
            name = users[0].output[0]
            users = [n for n in plain.graph.node if name in n.input]
        form = f"{name}_QuantizeLinear_Output"
        found[tensor] = form if form in known else name
    return found


def _samples(samples: Sequence[Sample | Array], specs: Sequence[TensorSpec]) -> list[dict[str, Array]]:
    if not samples:
        raise InvalidArgument("--calibrate: no samples are given; give files with inputs as the model will see them")
    found: list[dict[str, Array]] = []
    for number, sample in enumerate(samples, 1):
        try:
            pieces = [named(piece, specs) for piece in _pieces(sample, specs)]
        except InvalidArgument as error:
            raise InvalidArgument(f"--calibrate: sample {number}: {error.message}") from None
        for name, array in (item for piece in pieces for item in piece.items()):
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise InvalidArgument(
                    f"--calibrate: sample {number} has NaN or infinity in input {name!r}; give finite numbers"
                )
        found += pieces
    if len(found) < FEWEST:
        raise InvalidArgument(f"--calibrate: {len(found)} sample is given; give at least {FEWEST}, better 100")
    return found


def _pieces(sample: Sample | Array, specs: Sequence[TensorSpec]) -> Iterator[Sample | Array]:
    """A sample; several if the first extent of each array is the same multiple of the model's."""
    arrays = dict(sample) if isinstance(sample, Mapping) else {spec.name: sample for spec in specs[:1]}
    known = {spec.name: spec for spec in specs}
    counts = set()
    for name, array in arrays.items():
        rows = known[name].shape[0] if name in known and known[name].shape and array.ndim else ANY
        counts.add(len(array) // rows if rows != ANY and rows > 0 and len(array) % rows == 0 else 1)
    (count,) = counts if len(counts) == 1 else (1,)
    if count < 2:
        yield sample
        return
    for part in range(count):
        cut = {name: np.split(array, count)[part] for name, array in arrays.items()}
        yield cut if isinstance(sample, Mapping) else next(iter(cut.values()))


def _divided(samples: Sequence[dict[str, Array]]) -> tuple[list[dict[str, Array]], list[dict[str, Array]]]:
    """The samples that calibrate, and those that measure: every fourth, if there are enough."""
    if len(samples) < ENOUGH:
        return list(samples), []
    every = round(1 / HELD_OUT)
    held = {i for i in range(len(samples)) if i % every == every - 1}
    return [s for i, s in enumerate(samples) if i not in held], [samples[i] for i in sorted(held)]


def _check_float(file: PathLike, model: onnx.ModelProto) -> None:
    used = {node.op_type for node in model.graph.node}
    if any(name.startswith(("QLinear", "QuantizeLinear", "DequantizeLinear")) for name in used):
        raise InvalidArgument(f"{os.fspath(file)} is quantized already; compile it without --quantize")
    if not used & set(PRODUCTS):
        raise InvalidArgument(
            f"{os.fspath(file)} has nothing to quantize: {', '.join(PRODUCTS)}; compile it without --quantize"
        )
    halves = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    if any(weight.data_type in halves for weight in model.graph.initializer):
        raise InvalidArgument(f"{os.fspath(file)} has 16-bit weights; export it in float32 to quantize it")


def _operators(model: onnx.ModelProto) -> list[str]:
    """The operators to quantize."""
    weights = {w.name for w in model.graph.initializer}
    computed = [n for n in model.graph.node if n.op_type == "MatMul" and not weights.intersection(n.input)]
    # A few large values in the residual stream of a network with attention would take all of the range.
    return [*PRODUCTS, *MOVES, *(name for name in SIMPLE if name != "Add" or not computed)]


def _reader(quantization: object, samples: Sequence[Sample], report: Say) -> object:
    """The samples as ONNX Runtime reads them."""

    class Reader(quantization.CalibrationDataReader):  # type: ignore[name-defined, misc]  # it has no types
        def __init__(self) -> None:
            self._left = iter(enumerate(samples))

        def get_next(self) -> dict[str, Array] | None:
            number, sample = next(self._left, (0, None))
            if sample is None:
                return None
            report(f"sample {number + 1} of {len(samples)}", 0.8 * number / len(samples))
            return dict(sample)

    return Reader()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the quantizer's advice about its own options off the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _measured(model: PathLike, output: PathLike, samples: Sequence[Sample]) -> tuple[Quality, ...]:
    try:
        right, ours = open_reference(model), open_reference(output)
        pairs = [(_run(right, sample), _run(ours, sample)) for sample in samples]
    except CannotRun as error:
        raise FailedPrecondition(f"the int8 model cannot be compared with the float32 one: {error}") from None
    for expected, _ in pairs:
        for name, array in expected.items():
            if array.dtype.kind == "f" and np.isnan(array).any():
                raise InvalidArgument(
                    f"--calibrate: the float32 model computes NaN in output {name!r}; give samples that it can use"
                )
    return tuple(measure(name, [(a[name], b[name]) for a, b in pairs]) for name in pairs[0][0])


def _run(reference: Reference, sample: Sample) -> Mapping[str, Array]:
    try:
        return reference.run(sample)
    except Exception as error:
        raise CannotRun(f"{reference.name} does not take a sample: {one_line(error)}") from None


def _check_quality(qualities: Sequence[Quality]) -> None:
    for quality in qualities:
        if quality.decibels < LEAST_DB:
            raise FailedPrecondition(
                f"the int8 model is too inaccurate: {quality}; at least {LEAST_DB:g} dB are needed: give more samples, "
                "make the model robust by quantization-aware training, or accept it (--no-check)"
            )
