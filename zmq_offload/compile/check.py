"""Compare a compiled model with its file: the device bundle and its subgraphs run, and outputs are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tvm

from zmq_offload.artifacts.manifest import Manifest
from zmq_offload.byoc.codegen import Subgraph
from zmq_offload.byoc.encoding import Wire
from zmq_offload.common.units import counted
from zmq_offload.compile.accuracy import Loss, compare, named
from zmq_offload.compile.inprocess import Way, running
from zmq_offload.compile.models.base import Model
from zmq_offload.compile.onnx.shapes import Dim
from zmq_offload.compile.reference import ROUNDS, CannotRun, Reference
from zmq_offload.compile.target import runs_here
from zmq_offload.console.progress import Say, say_nothing
from zmq_offload.errors import FailedPrecondition, OffloadError, one_line
from zmq_offload.protocol.payload import Array
from zmq_offload.protocol.tensors import ANY, TensorSpec

TOLERANCE = {"float64": 1e-3, "float32": 1e-3, "float16": 2e-2}
"""The largest difference that passes, as a fraction of the output's largest value, by datatype."""

WIRE_TOLERANCE: dict[Wire, float | None] = {"float32": 0.0, "float16": 5e-2, "int8": None}
"""The same for each encoding. None: the difference is reported and always passes, since it depends on the model."""

FEW = 0.01
"""The fraction of an output's integers and booleans that may differ, because they are near a threshold or a tie."""

MASK = 1e8
"""Elements that exceed the median by this factor (-3.4e38, -1e9) mask others. They are compared separately."""


@dataclass(frozen=True)
class Checked:
    """The result of a check against the model's file. Its text is what the command prints.

    Attributes
    ----------
    against : str
        The reference, with its version.
    on : str
        The inputs: how many, given or random.
    losses : tuple of Loss
        The largest difference of each output.
    skipped : str, optional
        Why nothing was checked.
    """

    against: str = ""
    on: str = ""
    losses: tuple[Loss, ...] = ()
    skipped: str | None = None

    def __str__(self) -> str:
        if self.skipped is not None:
            return f"skipped: {self.skipped}"
        return "\n  ".join([f"against the file in {self.against}, on {self.on}", *map(str, self.losses)])


@dataclass(frozen=True)
class Check:
    """A check against a model that was compiled with shapes `inputs`, encodings `wires` and `targets`.

    Without `samples` it makes a random input, or two with different extents for a model with symbolic dimensions.
    """

    model: Model
    inputs: Mapping[str, Sequence[Dim]]
    wires: Sequence[Wire]
    samples: Sequence[Mapping[str, Array] | Array] = ()
    targets: Sequence[tvm.target.Target] = ()

    def __call__(
        self,
        device: Path,
        subgraphs: Sequence[tuple[Subgraph, Path]],
        operations: int = 0,
        report: Say = say_nothing,
    ) -> Checked:
        """Compare a device bundle and the libraries of its subgraphs with the file.

        `operations` is the number of floating-point operations of one run, `report` shows the progress.

        Raises FailedPrecondition, with the output and the place, for a difference, and InvalidArgument for samples that
        do not fit the model.
        """
        manifest = Manifest.read(device)
        reason = self._cannot_run(device, manifest, {subgraph.model for subgraph, _ in subgraphs})
        if reason is not None:
            return Checked(skipped=reason)
        try:
            reference = self.model.reference()
        except CannotRun as error:
            return Checked(skipped=str(error))
        if operations > reference.most_operations:
            return Checked(
                skipped=f"{operations:.1e} operations take {reference.name} too long (at most "
                f"{reference.most_operations:.0e})"
            )
        libraries = {subgraph.model: (subgraph, library) for subgraph, library in subgraphs}
        samples = self._samples(manifest.inputs)
        worst: dict[str, Loss] = {}
        tried, skipped = 0, ""
        with running(device, libraries, self.wires) as ways:
            for number, sample in enumerate(samples, 1):
                report(f"{reference.name}, input {number} of {len(samples)}", (number - 1) / len(samples))
                try:
                    losses = self._compared(reference, ways, manifest.outputs, sample)
                except CannotRun as error:
                    if self.samples:
                        raise FailedPrecondition(f"--check-input: {error}") from None
                    skipped = f"{error}; give inputs that it takes (--check-input)"
                    continue
                tried += 1
                for loss in losses:
                    worst[loss.output.name] = worst.setdefault(loss.output.name, loss).or_worse(loss)
        if not tried:
            return Checked(skipped=skipped)
        kind = "given" if self.samples else "random"
        on = f"{tried} {kind} inputs" if tried > 1 else f"a {kind} input"
        if manifest.splits:
            on += f", in {counted(len(ways), 'way')} to run it"
        return Checked(reference.name, on, tuple(worst.values()))

    def _cannot_run(self, device: Path, manifest: Manifest, models: set[str]) -> str | None:
        """Why the device bundle cannot run here with the subgraphs of these models; None if it can."""
        if not all(map(runs_here, self.targets)) or not (manifest.cpu is None or manifest.cpu.met()):
            return "this machine cannot run code for the target; check on a machine that can, or build for this one"
        others = {called.model for called in manifest.offloaded} - models
        if others and not manifest.splits:
            return f"{device} also calls {', '.join(sorted(others))}, which this build does not include"
        return None

    def _samples(self, specs: Sequence[TensorSpec]) -> list[dict[str, Array]]:
        if self.samples:
            return [named(sample, specs) for sample in self.samples]
        rounds = ROUNDS if any(ANY in spec.shape for spec in specs) else 1
        return [self.model.random_inputs(specs, self.inputs, number) for number in range(rounds)]

    def _compared(
        self, reference: Reference, ways: Sequence[Way], outputs: Sequence[TensorSpec], sample: Mapping[str, Array]
    ) -> list[Loss]:
        """Run all on a sample. Raises CannotRun if the reference cannot, FailedPrecondition for a difference."""
        right = _right(reference, sample)
        losses = []
        for way in ways:
            by = f", run as {way}," if way.name else ""
            try:
                results = way.run(sample)
            except Exception as error:
                if not way.name and not isinstance(error, OffloadError):
                    raise
                raise FailedPrecondition(
                    f"the compiled model{by} fails where {reference.name} does not: {one_line(error)}"
                ) from error
            losses += [
                self._loss(spec, ours, right[spec.name], reference, way.wires, by)
                for spec, ours in zip(outputs, results, strict=True)
            ]
        return losses

    def _loss(
        self, spec: TensorSpec, ours: Array, right: Array, reference: Reference, wires: Sequence[Wire], by: str
    ) -> Loss:
        """Compare an output. Raises FailedPrecondition if the difference is too large."""
        meaning = f"what {self.model.name} means in {reference.name}"
        what = f"the compiled model{by} does not compute {meaning}: output {spec.name!r}"
        more = "leave the operator out, report it, or accept it (--no-check)"
        if ours.dtype != right.dtype or ours.shape != right.shape:
            raise FailedPrecondition(
                f"{what} is {ours.dtype}{list(ours.shape)}, right is {right.dtype}{list(right.shape)}; {more}"
            )
        masks = _masks(right)
        if masks.any():
            ours = np.where(masks & np.isclose(ours, right, _fraction(right, reference, wires), 0), right, ours)
        difference, _ = compare(ours, right)
        _, largest = compare(right[~masks], right[~masks])
        finite = right.dtype.kind != "f" or not right.size or bool(np.isfinite(right).any())
        loss = Loss(spec, difference, largest, finite)
        limit, passes = _limit(ours, right, difference, largest, reference, wires)
        if not passes:
            at, a, b = _place(ours, right)
            raise FailedPrecondition(
                f"{what} is off by {difference:.3g} at {at}: {a:.6g}, right is {b:.6g}; allowed is {limit}; {more}"
            )
        return loss


def _limit(
    ours: Array, right: Array, difference: float, largest: float, reference: Reference, wires: Sequence[Wire]
) -> tuple[str, bool]:
    allowances = [WIRE_TOLERANCE[wire] for wire in wires]
    if right.dtype.kind in "biu":
        if (
            right.dtype.itemsize == 1
            and right.dtype.kind != "b"
            and difference <= max(1, reference.tolerance * largest)
        ):
            return "", True  # rounding of a quantized value
        lossy = any(a is None or a > 0 for a in allowances)
        return f"{FEW:.0%} of its elements", lossy or (ours != right).mean() <= FEW
    if not np.isfinite(difference):
        return "NaN and infinities where the reference has them", False
    if any(a is None for a in allowances):
        return "", True
    fraction = _fraction(right, reference, wires)
    return f"{fraction:.1%} of the largest value ({largest:.3g})", difference <= fraction * largest + 1e-6


def _fraction(right: Array, reference: Reference, wires: Sequence[Wire]) -> float:
    """The difference that passes, as a fraction of the largest value."""
    return max(TOLERANCE[str(right.dtype)], reference.tolerance, *(WIRE_TOLERANCE[wire] or 0.0 for wire in wires))


def _masks(right: Array) -> Array:
    """True for elements that are far larger than the others."""
    if right.dtype.kind != "f":
        return np.zeros(right.shape, bool)
    sizes = np.abs(right.astype(np.float64))
    usual = sizes[np.isfinite(sizes) & (sizes > 0)]
    return np.isfinite(sizes) & (sizes > MASK * (np.median(usual) if usual.size else 1.0))


def _right(reference: Reference, sample: Mapping[str, Array]) -> Mapping[str, Array]:
    try:
        return reference.run(sample)
    except Exception as error:
        raise CannotRun(f"{reference.name} does not take the input: {one_line(error)}") from None


def _place(ours: Array, right: Array) -> tuple[list[int], float, float]:
    """The place where two arrays differ most, and both values."""
    a, b = ours.astype(np.float64), right.astype(np.float64)
    with np.errstate(invalid="ignore"):
        apart = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0, np.nan_to_num(np.abs(a - b), nan=np.inf))
    at = np.unravel_index(int(np.argmax(apart)), apart.shape)
    return [int(i) for i in at], float(a[at]), float(b[at])
