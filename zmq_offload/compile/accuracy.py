"""Measure how far a split model is from the uncut one. Both run in this process."""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from zmq_offload.artifacts.repository import LIBRARY
from zmq_offload.compile.bundle import Compiled
from zmq_offload.compile.inprocess import Signed, running
from zmq_offload.compile.onnx.shapes import Dim
from zmq_offload.compile.uncut import UncutModel, compile_uncut
from zmq_offload.errors import FailedPrecondition, InvalidArgument, one_line
from zmq_offload.protocol.payload import Array
from zmq_offload.protocol.tensors import ANY, TensorSpec, check_tensors, datatype_of

SEED = 0


@dataclass(frozen=True)
class Loss:
    """How far an output of the split model is from the same output of a reference.

    NaN and infinities in the same place of both are not a difference. Where only one of them has a NaN or an infinity,
    the difference is infinite.

    Attributes
    ----------
    output : TensorSpec
        Name, datatype and shape of the output.
    absolute : float
        Largest difference of any element in any sample.
    largest : float
        Largest magnitude in the reference's output.
    finite : bool
        Whether the reference's output has a finite element.
    way : str
        Of an adaptive bundle: the split by which it ran.

    Examples
    --------
    >>> from zmq_offload.protocol.tensors import TensorSpec
    >>> print(Loss(TensorSpec("y", "FP32", (1, 10)), absolute=0.025, largest=5.0))
    y FP32[1,10]: off by at most 2.50e-02, 0.50% of the largest value (5)
    """

    output: TensorSpec
    absolute: float
    largest: float
    finite: bool = True
    way: str = ""

    @property
    def relative(self) -> float:
        """`absolute` as a fraction of `largest`; infinite where only `largest` is 0."""
        if self.absolute == 0:
            return 0.0
        return self.absolute / self.largest if self.largest else float("inf")

    def or_worse(self, other: Loss) -> Loss:
        """The loss over the samples of both."""
        return replace(
            self,
            absolute=max(self.absolute, other.absolute),
            largest=max(self.largest, other.largest),
            finite=self.finite or other.finite,
        )

    def __str__(self) -> str:
        what = f"{self.output} by {self.way}" if self.way else str(self.output)
        if not self.finite and self.absolute == 0:
            return f"{what}: only NaN and infinities, the same in both"
        return (
            f"{what}: off by at most {self.absolute:.2e}, {self.relative:.2%} of the largest value ({self.largest:.3g})"
        )


def measure_losses(
    model: str | os.PathLike[str],
    compiled: Compiled,
    samples: Sequence[Mapping[str, Array]],
    *,
    inputs: Mapping[str, Sequence[Dim]] | None = None,
    again: Callable[[Path], Compiled] | None = None,
) -> list[Loss]:
    """Run an ONNX model split and uncut on the same samples and compare each output.

    Parameters
    ----------
    model : path
        ONNX file that `compiled` was built from.
    compiled : Compiled
        Result of `compile_model`.
    samples : sequence of mapping of str to numpy.ndarray
        Inputs by name, with the datatypes and shapes of the model's inputs.
    inputs : mapping of str to sequence of int or str, optional
        Input shapes, as for `compile_model`.
    again : callable, optional
        Compiles the split model for this machine into the folder that it is given. Called if `compiled` cannot run
        here: it is for another kind of CPU, or its device bundle calls models that it does not include
        (`only_subgraph` for one of several regions).

    Returns
    -------
    list of Loss
        One for each output of the model, over all samples; of an adaptive bundle, for each split and output.

    Raises
    ------
    InvalidArgument
        A sample does not fit the model.
    FailedPrecondition
        The libraries cannot run here, and `again` is not given.

    Examples
    --------
    >>> compiled = compile_model("m.onnx", cut="features", name="m", wire="int8")  # doctest: +SKIP
    >>> print(*measure_losses("m.onnx", compiled, [random_sample(compiled.manifest.inputs)]))  # doctest: +SKIP
    y FP32[1,10]: off by at most 2.50e-02, 0.50% of the largest value (5)
    """
    with tempfile.TemporaryDirectory(prefix="zmq-offload-accuracy-") as scratch:
        others = {called.model for called in compiled.manifest.offloaded} - {model.name for model in compiled.models}
        if again is not None and (others or not _runs_here(compiled)):
            compiled = again(Path(scratch) / "split")
        elif others and not compiled.manifest.splits:
            raise FailedPrecondition(
                f"{compiled.device} also calls {', '.join(sorted(others))}, which this build does not include"
            )
        library = Path(scratch) / "uncut.so"
        compile_uncut(model, library, inputs=inputs)
        uncut = UncutModel(library)
        manifest = compiled.manifest
        worst: dict[tuple[str, str], Loss] = {}
        with running(compiled.device, _libraries(compiled)) as ways:
            for sample in samples:
                found = [way.run(sample) for way in ways]
                expected = uncut(*(np.asarray(sample[spec.name]) for spec in manifest.inputs))
                for way, results in zip(ways, found, strict=True):
                    for spec, ours, theirs in zip(manifest.outputs, results, expected, strict=True):
                        loss = Loss(spec, *compare(ours, theirs), way=way.name)
                        known = worst.setdefault((way.name, spec.name), loss)
                        worst[way.name, spec.name] = known.or_worse(loss)
    return list(worst.values())


def random_sample(specs: Sequence[TensorSpec], seed: int = SEED) -> dict[str, Array]:
    """Make a random array for each input.

    Floats come from a normal distribution, integers are 0 to 9, booleans 0 or 1. A symbolic extent is 2 at dimension 0
    and 64 elsewhere.

    Parameters
    ----------
    specs : sequence of TensorSpec
        Name, datatype and shape of each input.
    seed : int
        Seed of the generator. The same seed gives the same arrays.

    Returns
    -------
    dict of str to numpy.ndarray
        Arrays by input name.

    Examples
    --------
    >>> from zmq_offload.protocol.tensors import TensorSpec
    >>> random_sample([TensorSpec("x", "FP32", (-1, 3))])["x"].shape
    (2, 3)
    """
    generator = np.random.default_rng(seed)
    sample = {}
    for spec in specs:
        shape = [
            spec.usual(axis, 2 if axis == 0 else 64) * spec.multiple(axis) if d == ANY else d
            for axis, d in enumerate(spec.shape)
        ]
        if spec.dtype.kind == "f":
            sample[spec.name] = generator.standard_normal(shape).astype(spec.dtype)
        else:
            sample[spec.name] = generator.integers(0, 2 if spec.dtype.kind == "b" else 10, shape).astype(spec.dtype)
    return sample


def read_sample(file: str | os.PathLike[str]) -> Mapping[str, Array] | Array:
    """Read a sample from a file.

    Parameters
    ----------
    file : path
        A ``.npy`` file with one array, or an ``.npz`` file with arrays by input name. Pickled objects are refused.

    Returns
    -------
    numpy.ndarray or mapping of str to numpy.ndarray

    Raises
    ------
    InvalidArgument
        The file cannot be read.

    Examples
    --------
    >>> sample = read_sample("inputs.npz")  # doctest: +SKIP
    """
    try:
        # NumPy would leave a file open that it fails to read.
        with open(file, "rb") as opened:
            content = np.load(opened, allow_pickle=False)
            return dict(content) if isinstance(content, np.lib.npyio.NpzFile) else content
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, OSError):
            raise InvalidArgument(f"{os.fspath(file)} cannot be read: {error.strerror or error}") from None
        raise InvalidArgument(f"{os.fspath(file)} cannot be read as .npy or .npz: {one_line(error)}") from None


def read_samples(texts: Sequence[str]) -> list[Mapping[str, Array] | Array]:
    """Read samples from texts as the command line takes them.

    Parameters
    ----------
    texts : sequence of str
        ``FILE.npz`` or ``FILE.npy`` for one sample each; all ``NAME=FILE.npy`` together are one more sample.

    Returns
    -------
    list of numpy.ndarray or mapping of str to numpy.ndarray

    Raises
    ------
    InvalidArgument
        A file cannot be read, or an input is given twice.

    Examples
    --------
    >>> samples = read_samples(["ids=ids.npy", "mask=mask.npy", "another.npz"])  # doctest: +SKIP
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
            raise InvalidArgument(f"{text}: {file} has several arrays; give the file without a name")
        if name in one:
            raise InvalidArgument(
                f"{text}: {name!r} is given twice; write each of several samples into a file: "
                "numpy.savez(FILE, NAME=array, ...)"
            )
        one[name] = content
    return [*([one] if one else []), *samples]


def named(sample: Mapping[str, Array] | Array, specs: Sequence[TensorSpec]) -> dict[str, Array]:
    """Return a sample by the names of the model's inputs.

    Parameters
    ----------
    sample : numpy.ndarray or mapping of str to numpy.ndarray
        One array for a model with one input, or arrays by input name.
    specs : sequence of TensorSpec
        Name, datatype and shape of each input.

    Returns
    -------
    dict of str to numpy.ndarray

    Raises
    ------
    InvalidArgument
        The sample has other names, datatypes or shapes than the inputs.

    Examples
    --------
    >>> import numpy as np
    >>> from zmq_offload.protocol.tensors import TensorSpec
    >>> list(named(np.zeros((1, 3), "float32"), [TensorSpec("x", "FP32", (1, 3))]))
    ['x']
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
            f"arrays {', '.join(map(repr, given)) or 'without names'} are given; the model's inputs are "
            f"{', '.join(map(repr, names))}: write them with numpy.savez(FILE, NAME=array, ...)"
        )
    arrays = {name: (datatype_of(array.dtype), array.shape) for name, array in given.items()}
    check_tensors(specs, arrays, what="the model")
    return given


def compare(ours: Array, theirs: Array) -> tuple[float, float]:
    """Compare two arrays, as `Loss` describes.

    Parameters
    ----------
    ours, theirs : numpy.ndarray
        Arrays of numbers or booleans. Arrays of different shapes differ infinitely.

    Returns
    -------
    difference : float
        Largest absolute difference.
    largest : float
        Largest finite magnitude in `theirs`.

    Examples
    --------
    >>> import numpy as np
    >>> compare(np.array([1.0, 2.5]), np.array([1.0, 2.0]))
    (0.5, 2.0)
    """
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


def _libraries(compiled: Compiled) -> dict[str, tuple[Signed, Path]]:
    return {
        model.name: (model, folder / LIBRARY) for folder, model in zip(compiled.subgraphs, compiled.models, strict=True)
    }
