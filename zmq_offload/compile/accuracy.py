"""What an encoding of the boundary costs in accuracy: the split model against the uncut one, both in this process."""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from zmq_offload.artifacts.repository import LIBRARY
from zmq_offload.compile.bundle import Compiled
from zmq_offload.compile.importer import Dim
from zmq_offload.compile.uncut import UncutModel, compile_uncut
from zmq_offload.device.model import load
from zmq_offload.errors import FailedPrecondition, InvalidArgument, one_line
from zmq_offload.protocol.tensors import ANY, TensorSpec, check_tensors, datatype_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from zmq_offload.client.options import InferOptions

Array = np.ndarray[Any, Any]

SEED = 0


@dataclass(frozen=True)
class Loss:
    """How far an output of the split model is from that of the uncut one: `absolute` is the largest difference of all
    elements and samples, `largest` the largest magnitude in the uncut one's. NaN and infinities that both have in the
    same place are no difference; where only one of them has them, it is infinite. `finite`: there is anything else."""

    output: TensorSpec
    absolute: float
    largest: float
    finite: bool = True

    @property
    def relative(self) -> float:
        """The largest difference as a part of the largest value; infinite where that is 0 and there is a difference."""
        if self.absolute == 0:
            return 0.0
        return self.absolute / self.largest if self.largest else float("inf")

    def __str__(self) -> str:
        if not self.finite and self.absolute == 0:
            return f"{self.output}: nothing but NaN and infinities, the same in both"
        return (
            f"{self.output}: off by at most {self.absolute:.2e}, {self.relative:.2%} of the largest value "
            f"({self.largest:.3g})"
        )


def measure_losses(
    model: str | os.PathLike[str],
    compiled: Compiled,
    samples: Sequence[Mapping[str, Array]],
    *,
    inputs: Mapping[str, Sequence[Dim]] | None = None,
    again: Callable[[Path], Compiled] | None = None,
) -> list[Loss]:
    """Run an ONNX model uncut and split on the same samples and compare each output.

    `inputs` are the shapes that it was compiled with. Libraries that are for another kind of CPU cannot run here, nor
    can a device bundle that calls more models than were compiled (`only_subgraph` of one of several regions): `again`
    compiles the split model once more, for this one, into a folder that it is given.

    Raises InvalidArgument for samples that do not fit the model, and FailedPrecondition for what cannot run here
    without `again`.
    """
    with tempfile.TemporaryDirectory(prefix="zmq-offload-accuracy-") as scratch:
        others = {part.model for part in compiled.manifest.offloaded} - {model.name for model in compiled.models}
        if again is not None and (others or not _runs_here(compiled)):
            compiled = again(Path(scratch) / "split")
        elif others:
            raise FailedPrecondition(f"{compiled.device} calls {', '.join(sorted(others))}, too, which is not at hand")
        library = Path(scratch) / "uncut.so"
        compile_uncut(model, library, inputs=inputs)
        uncut = UncutModel(library)
        specs = compiled.manifest.outputs
        differences = [[0.0, 0.0] for _ in specs]
        with load(compiled.device, client=InProcess(_parts(compiled))) as split:
            for sample in samples:
                found = split(**sample)
                expected = uncut(*(np.asarray(sample[spec.name]) for spec in split.inputs))
                for worst, ours, theirs in zip(
                    differences, found if isinstance(found, tuple) else (found,), expected, strict=True
                ):
                    difference, largest = compare(ours, theirs)
                    worst[:] = max(worst[0], difference), max(worst[1], largest)
    return [Loss(spec, worst[0], worst[1]) for spec, worst in zip(specs, differences, strict=True)]


def random_sample(specs: Sequence[TensorSpec], seed: int = SEED) -> dict[str, Array]:
    """One input of each tensor: floats from a normal distribution, integers from 0 to 9. A symbolic extent is 2 at
    dimension 0, 64 elsewhere."""
    generator = np.random.default_rng(seed)
    sample = {}
    for spec in specs:
        shape = [(2 if axis == 0 else 64) if d == ANY else d for axis, d in enumerate(spec.shape)]
        if spec.dtype.kind == "f":
            sample[spec.name] = generator.standard_normal(shape).astype(spec.dtype)
        else:
            sample[spec.name] = generator.integers(0, 2 if spec.dtype.kind == "b" else 10, shape).astype(spec.dtype)
    return sample


def read_sample(file: str | os.PathLike[str]) -> Mapping[str, Array] | Array:
    """What is in a .npz (arrays by name) or .npy file. Raises InvalidArgument, naming it, if it cannot be read."""
    try:
        # Opened here, because NumPy leaves a file open that it cannot read.
        with open(file, "rb") as opened:
            content = np.load(opened, allow_pickle=False)
            return dict(content) if isinstance(content, np.lib.npyio.NpzFile) else content
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, OSError):
            raise InvalidArgument(f"{os.fspath(file)} cannot be read: {error.strerror or error}") from None
        raise InvalidArgument(f"{os.fspath(file)} cannot be read as .npy or .npz: {one_line(error)}") from None


def read_samples(texts: Sequence[str]) -> list[Mapping[str, Array] | Array]:
    """The samples that `NAME=FILE.npy` and `FILE.npz` (or `FILE.npy`) give: all NAME=FILE together are one.

    Raises InvalidArgument for what cannot be read.
    """
    samples: list[Mapping[str, Array] | Array] = []
    one: dict[str, Array] = {}
    for text in texts:
        name, equals, file = text.rpartition("=")
        if not equals or os.path.exists(text):
            samples.append(read_sample(text))
            continue
        content = read_sample(file)
        if isinstance(content, Mapping):
            raise InvalidArgument(f"{text}: {file} has several arrays; give it without a name")
        if name in one:
            raise InvalidArgument(
                f"{text}: {name!r} is given twice; write each of several samples into a file: "
                "numpy.savez(FILE, NAME=array, ...)"
            )
        one[name] = content
    return [*([one] if one else []), *samples]


def named(sample: Mapping[str, Array] | Array, specs: Sequence[TensorSpec]) -> dict[str, Array]:
    """A sample by the names of the model's inputs; one array is for a model that has one.

    Raises InvalidArgument if it has other tensors, or tensors of another datatype or shape.
    """
    names = [spec.name for spec in specs]
    if isinstance(sample, Mapping):
        given = dict(sample)
    elif len(names) == 1:
        given = {names[0]: sample}
    else:
        raise InvalidArgument(f"one array is given; the model's inputs are {', '.join(map(repr, names))}")
    if set(given) != set(names):
        raise InvalidArgument(
            f"arrays {', '.join(map(repr, given)) or 'of no name'} are given; the model's inputs are "
            f"{', '.join(map(repr, names))}: write them with numpy.savez(FILE, NAME=array, ...)"
        )
    arrays = {name: (datatype_of(array.dtype), array.shape) for name, array in given.items()}
    check_tensors(specs, arrays, what="the model")
    return given


def compare(ours: Array, theirs: Array) -> tuple[float, float]:
    """The largest difference of two arrays and the largest magnitude in `theirs`; see `Loss`."""
    if ours.shape != theirs.shape:
        return float("inf"), 0.0
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    finite = np.isfinite(b)
    odd = ~finite & ~((a == b) | (np.isnan(a) & np.isnan(b)))
    difference = float("inf") if odd.any() or not np.isfinite(a[finite]).all() else _largest(a[finite] - b[finite])
    return difference, _largest(b[finite])


def _largest(values: Array) -> float:
    return float(np.abs(values).max(initial=0.0))


def _runs_here(compiled: Compiled) -> bool:
    needs = [compiled.manifest.cpu, *(model.cpu for model in compiled.models)]
    return all(cpu is None or cpu.met() for cpu in needs)


def _parts(compiled: Compiled) -> dict[str, tuple[Signed, Path]]:
    return {
        model.name: (model, folder / LIBRARY) for folder, model in zip(compiled.subgraphs, compiled.models, strict=True)
    }


class Signed(Protocol):
    """What tells the inputs and outputs of a subgraph, in order."""

    @property
    def inputs(self) -> Sequence[TensorSpec]: ...

    @property
    def outputs(self) -> Sequence[TensorSpec]: ...


class InProcess:
    """A client that runs libraries of subgraphs, by the models' names, here. Not for several threads at a time."""

    def __init__(self, parts: Mapping[str, tuple[Signed, Path]]) -> None:
        self._models = {name: (signed, UncutModel(library)) for name, (signed, library) in parts.items()}

    def infer(self, model: str, inputs: Mapping[str, Array], **options: Unpack[InferOptions]) -> dict[str, Array]:
        described, run = self._models[model]
        results = run(*(inputs[spec.name] for spec in described.inputs))
        return {spec.name: array for spec, array in zip(described.outputs, results, strict=True)}
