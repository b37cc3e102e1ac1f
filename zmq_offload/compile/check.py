"""Whether what was compiled computes what the ONNX file means: both halves, run as a device runs them, against it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zmq_offload.artifacts.manifest import Manifest
from zmq_offload.byoc.codegen import Subgraph
from zmq_offload.byoc.encoding import Wire
from zmq_offload.compile.accuracy import Array, InProcess, Loss, compare, named
from zmq_offload.compile.importer import Dim
from zmq_offload.compile.onnx_file import read_onnx
from zmq_offload.compile.reference import ROUNDS, CannotRun, Reference, open_reference, random_inputs
from zmq_offload.compile.target import runs_here
from zmq_offload.device.model import load
from zmq_offload.errors import FailedPrecondition, OffloadError, one_line
from zmq_offload.protocol.tensors import ANY, TensorSpec

TOLERANCE = {"float64": 1e-3, "float32": 1e-3, "float16": 2e-2}
"""The largest difference that passes, as a part of the largest value of the output, by its datatype."""

WIRE_TOLERANCE: dict[Wire, float | None] = {"float32": 0.0, "float16": 5e-2, "int8": None}
"""The same where tensors travel as something smaller. What int8 costs depends on the model: it is told, not judged."""

FEW = 0.01
"""The part of an output's integers and booleans that may differ: those next to a threshold, or a tie."""


MASK = 1e8
"""An element that is larger than the median by this factor hides others (-3.4e38, -1e9) and is compared by itself."""


@dataclass(frozen=True)
class Checked:
    """What a check compared with, on what inputs, and how far each output is off; or why it was skipped."""

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
    """What is to be checked: the file, the shapes that it was compiled for, the wires, and the inputs to try.

    Without `samples` random ones are made, one for a model of fixed shapes, two with other extents each otherwise.
    """

    model: str | os.PathLike[str]
    inputs: Mapping[str, Sequence[Dim]]
    wires: Sequence[Wire]
    samples: Sequence[Mapping[str, Array] | Array] = ()
    targets: Sequence[Any] = ()

    def __call__(self, device: Path, subgraphs: Sequence[tuple[Subgraph, Path]], operations: int = 0) -> Checked:
        """Compare a device bundle and the libraries of its subgraphs, of so many floating-point operations, with the
        file.

        Raises FailedPrecondition, naming the output and the place, if they compute something else, and InvalidArgument
        for samples that do not fit the model.
        """
        manifest = Manifest.read(device)
        if not all(map(runs_here, self.targets)) or not (manifest.cpu is None or manifest.cpu.met()):
            return Checked(
                skipped="this machine cannot run code for the target; check on one that can, or build for it"
            )
        others = {part.model for part in manifest.offloaded} - {subgraph.model for subgraph, _ in subgraphs}
        if others:
            return Checked(skipped=f"{device} also calls {', '.join(sorted(others))}, which is not at hand")
        try:
            reference = open_reference(self.model)
        except CannotRun as error:
            return Checked(skipped=str(error))
        if operations > reference.most_operations:
            return Checked(
                skipped=f"{operations:.1e} operations take {reference.name} too long (at most "
                f"{reference.most_operations:.0e})"
            )
        parts = {subgraph.model: (subgraph, library) for subgraph, library in subgraphs}
        worst: dict[str, Loss] = {}
        tried, reason = 0, ""
        with load(device, client=InProcess(parts)) as split:
            for sample in self._samples(manifest.inputs):
                try:
                    right = _right(reference, sample)
                except CannotRun as error:
                    if self.samples:
                        raise FailedPrecondition(f"--check-input: {error}") from None
                    reason = f"{error}; give inputs that it takes (--check-input)"
                    continue
                try:
                    found = split(**sample)
                except OffloadError as error:
                    raise FailedPrecondition(
                        f"the compiled model fails where {reference.name} does not: {one_line(error)}"
                    ) from error
                tried += 1
                results = found if isinstance(found, tuple) else (found,)
                for spec, ours in zip(manifest.outputs, results, strict=True):
                    loss = self._compared(spec, ours, right[spec.name], reference.name)
                    before = worst.get(spec.name)
                    worst[spec.name] = loss if before is None else _worse(before, loss)
        if not tried:
            return Checked(skipped=reason)
        kind = "given" if self.samples else "random"
        on = f"{tried} {kind} inputs" if tried > 1 else f"a {kind} input"
        return Checked(reference.name, on, tuple(worst.values()))

    def _samples(self, specs: Sequence[TensorSpec]) -> list[dict[str, Array]]:
        if self.samples:
            return [named(sample, specs) for sample in self.samples]
        model = read_onnx(self.model)
        rounds = ROUNDS if any(ANY in spec.shape for spec in specs) else 1
        return [random_inputs(model, specs, self.inputs, number) for number in range(rounds)]

    def _compared(self, spec: TensorSpec, ours: Array, right: Array, reference: str) -> Loss:
        """How far an output is off. Raises FailedPrecondition if that is too far."""
        file = os.fspath(self.model)
        what = f"the compiled model does not compute what {file} means in {reference}: output {spec.name!r}"
        more = "leave the operator out, report it, or accept it (--no-check)"
        if ours.dtype != right.dtype or ours.shape != right.shape:
            raise FailedPrecondition(
                f"{what} is {ours.dtype}{list(ours.shape)}, right is {right.dtype}{list(right.shape)}; {more}"
            )
        masks = _masks(right)
        if masks.any():
            ours = np.where(masks & np.isclose(ours, right, self._part(right), 0), right, ours)
        difference, _ = compare(ours, right)
        _, largest = compare(right[~masks], right[~masks])
        finite = right.dtype.kind != "f" or not right.size or bool(np.isfinite(right).any())
        loss = Loss(spec, difference, largest, finite)
        limit, passes = self._limit(ours, right, difference, largest)
        if not passes:
            at, a, b = _place(ours, right)
            raise FailedPrecondition(
                f"{what} is off by {difference:.3g} at {at}: {a:.6g}, right is {b:.6g}; allowed is {limit}; {more}"
            )
        return loss

    def _limit(self, ours: Array, right: Array, difference: float, largest: float) -> tuple[str, bool]:
        allowances = [WIRE_TOLERANCE[wire] for wire in self.wires]
        if right.dtype.kind in "biu":
            if right.dtype.itemsize == 1 and right.dtype.kind != "b" and difference <= 1:
                return "", True  # a rounding of what was quantized
            lossy = any(a is None or a > 0 for a in allowances)
            return f"{FEW:.0%} of its elements", lossy or (ours != right).mean() <= FEW
        if not np.isfinite(difference):
            return "no NaN or infinity that the file has not, nor the other way round", False
        if any(a is None for a in allowances):
            return "", True
        part = self._part(right)
        return f"{part:.1%} of the largest value ({largest:.3g})", difference <= part * largest + 1e-6

    def _part(self, right: Array) -> float:
        """The difference that passes, as a part of the largest value."""
        return max(TOLERANCE[str(right.dtype)], *(WIRE_TOLERANCE[wire] or 0.0 for wire in self.wires))


def _masks(right: Array) -> Array:
    """Where an output has numbers that are far larger than its others."""
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


def _place(ours: Array, right: Array) -> tuple[list[int], Any, Any]:
    """Where two arrays differ most, and both values."""
    a, b = ours.astype(np.float64), right.astype(np.float64)
    with np.errstate(invalid="ignore"):
        apart = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0, np.nan_to_num(np.abs(a - b), nan=np.inf))
    at = np.unravel_index(int(apart.argmax()), apart.shape)
    return [int(i) for i in at], a[at], b[at]


def _worse(one: Loss, other: Loss) -> Loss:
    finite = one.finite or other.finite
    return Loss(one.output, max(one.absolute, other.absolute), max(one.largest, other.largest), finite)
