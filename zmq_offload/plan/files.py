"""Profiles and plans as files: JSON, with the model that they are of and a format version."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zmq_offload.artifacts.repository import checksum
from zmq_offload.errors import FailedPrecondition, InvalidArgument
from zmq_offload.plan.costs import WIRES, CutPoint, Times, Wire
from zmq_offload.protocol.tensors import TensorSpec

FORMAT_VERSION = 1
PROFILE = "zmq-offload profile of cuts"
PLAN = "zmq-offload plan"


@dataclass(frozen=True)
class PlannedModel:
    """Which model a file is of: the ONNX file's name and checksum, and its inputs' shapes."""

    file: str
    checksum: str
    inputs: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, model: Path, inputs: Sequence[TensorSpec]) -> PlannedModel:
        return cls(model.name, checksum(model), {spec.name: spec.shape for spec in inputs})

    def to_json(self) -> dict[str, Any]:
        return {"file": self.file, "checksum": self.checksum, "inputs": {n: list(s) for n, s in self.inputs.items()}}

    @classmethod
    def from_json(cls, value: Any) -> PlannedModel:
        inputs = {str(name): tuple(int(d) for d in shape) for name, shape in value["inputs"].items()}
        return cls(str(value["file"]), str(value["checksum"]), inputs)

    def check(self, model: Path, file: Path, inputs: Mapping[str, Sequence[int | str]] | None = None) -> None:
        """Raises InvalidArgument if `file`, which this was read from, is of another model than the file `model`, or of
        other shapes than `inputs`, as far as those are given."""
        try:
            found = checksum(model)
        except OSError as error:
            raise InvalidArgument(f"{model} cannot be read: {error.strerror or error}") from None
        if found != self.checksum:
            raise InvalidArgument(f"{file} is of another model: of {self.file}, not of this {model.name}")
        for name, shape in (inputs or {}).items():
            own = self.inputs.get(name)
            if own is None or tuple(shape) != own:
                given = ",".join(map(str, shape))
                known = "; ".join(f"{n}={','.join(map(str, s))}" for n, s in self.inputs.items())
                raise InvalidArgument(f"{file} is of inputs {known}, not of {name}={given}")


@dataclass(frozen=True)
class CutTimes:
    """The times of a model's parts on one machine, to be carried to another."""

    model: PlannedModel
    machine: str
    threads: int
    points: tuple[CutPoint, ...]
    times: Times

    def write(self, file: Path) -> None:
        times = self.times
        _write(
            file,
            PROFILE,
            {
                "model": self.model.to_json(),
                "machine": self.machine,
                "threads": self.threads,
                "places": [[t.to_json() for t in point.tensors] for point in self.points],
                "seconds": {
                    "before": times.before,
                    "behind": times.after,
                    "encode": times.encode,
                    "decode": times.decode,
                },
            },
        )

    @classmethod
    def read(cls, file: Path) -> CutTimes:
        """Raises InvalidArgument for a file that is none, of another format version, or damaged."""
        value = _read(file, PROFILE, "zmq-offload profile MODEL.onnx --save FILE")
        try:
            points = tuple(CutPoint(tuple(map(TensorSpec.from_json, point))) for point in value["places"])
            seconds = value["seconds"]
            size = len(points)
            times = Times(
                _seconds(seconds["before"], size),
                _seconds(seconds["behind"], size),
                _coding(seconds["encode"], size),
                _coding(seconds["decode"], size),
            )
            model = PlannedModel.from_json(value["model"])
            return cls(model, str(value["machine"]), int(value["threads"]), points, times)
        except KeyError as missing:
            raise InvalidArgument(f"{file} is damaged: key {missing} is missing") from None
        except (TypeError, ValueError, AttributeError) as error:
            raise InvalidArgument(f"{file} is damaged: {error}") from None

    def times_for(self, model: Path, points: Sequence[CutPoint], file: Path) -> Times:
        """The times, if they are of this model and its points. Raises InvalidArgument otherwise."""
        self.model.check(model, file, {t.name: t.shape for t in points[0].tensors})
        if tuple(points) != self.points:
            raise InvalidArgument(f"{file} has other cuts than this release finds in {model.name}; take it again")
        return self.times


@dataclass(frozen=True)
class Plan:
    """What was chosen for a model. `cut` is empty if all of it stays on the device; an `until` that is empty stands for
    the model's outputs. `predicted` are the prediction's figures, for a reader. `sealed` are the weights that were to
    be kept off the device."""

    model: PlannedModel
    cut: tuple[str, ...]
    until: tuple[str, ...]
    wire: Wire
    objective: str
    predicted: Mapping[str, Any]
    sealed: tuple[str, ...] = ()

    @property
    def local(self) -> bool:
        return not self.cut

    def write(self, file: Path) -> None:
        _write(
            file,
            PLAN,
            {
                "model": self.model.to_json(),
                "cut": self.cut,
                "until": self.until,
                "wire": self.wire,
                "objective": self.objective,
                "sealed": self.sealed,
                "predicted": self.predicted,
            },
        )

    @classmethod
    def read(cls, file: Path) -> Plan:
        """Raises InvalidArgument for a file that is none, of another format version, or damaged."""
        value = _read(file, PLAN, "zmq-offload plan ... --save FILE")
        try:
            wire = value["wire"]
            if wire not in WIRES:
                raise ValueError(f"wire {wire!r} is not one of {', '.join(WIRES)}")
            cut, until = _names(value["cut"]), _names(value["until"])
            model, predicted = PlannedModel.from_json(value["model"]), dict(value["predicted"])
            return cls(model, cut, until, wire, str(value["objective"]), predicted, _names(value.get("sealed", [])))
        except KeyError as missing:
            raise InvalidArgument(f"{file} is damaged: key {missing} is missing") from None
        except (TypeError, ValueError, AttributeError) as error:
            raise InvalidArgument(f"{file} is damaged: {error}") from None


def _write(file: Path, kind: str, value: Mapping[str, Any]) -> None:
    try:
        file.write_text(json.dumps({"format": kind, "format_version": FORMAT_VERSION, **value}, indent=2) + "\n")
    except OSError as error:
        raise FailedPrecondition(f"{file} cannot be written: {error.strerror or error}") from None


def _read(file: Path, kind: str, made_by: str) -> dict[str, Any]:
    try:
        value = json.loads(file.read_bytes())
    except OSError as error:
        raise InvalidArgument(f"{file} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{file} is not JSON: {error}") from None
    if not isinstance(value, dict) or value.get("format") != kind:
        raise InvalidArgument(f"{file} is not a {kind}; create one with: {made_by}")
    if value.get("format_version") != FORMAT_VERSION:
        raise InvalidArgument(
            f"{file} has format version {value.get('format_version')!r}, this release reads {FORMAT_VERSION}; "
            f"make it again by: {made_by}"
        )
    return value


def _seconds(values: Any, size: int) -> tuple[float, ...]:
    found = tuple(float(v) for v in values)
    if len(found) != size or not all(0 <= v < 1e6 for v in found):
        raise ValueError(f"{len(found)} times for {size} points, each to be from 0 and below 1e6 seconds")
    return found


def _coding(value: Mapping[str, Any], size: int) -> dict[Wire, tuple[float, ...]]:
    return {wire: _seconds(value[wire], size) for wire in WIRES}


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError("cut, until and sealed are lists of names")
    return tuple(value)
