"""Plans and times of cuts as JSON files, with the model that they belong to and a format version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from zmq_offload.artifacts import jsonfile
from zmq_offload.artifacts.repository import checksum
from zmq_offload.errors import FailedPrecondition, InvalidArgument
from zmq_offload.plan.costs import WIRES, CutPoint, Times, Wire
from zmq_offload.protocol.tensors import TensorSpec

FORMAT_VERSION = 1
PROFILE = "zmq-offload profile of cuts"
PLAN = "zmq-offload plan"

Seconds = Annotated[float, msgspec.Meta(ge=0, lt=1e6)]
T = TypeVar("T")


class PlannedModel(msgspec.Struct, frozen=True):
    """The model that a file belongs to: name and checksum of the model file, and the shapes of its inputs."""

    file: str
    checksum: str
    inputs: dict[str, tuple[int, ...]]

    @classmethod
    def of(cls, model: Path, inputs: Sequence[TensorSpec]) -> PlannedModel:
        return cls(model.name, checksum(model), {spec.name: spec.shape for spec in inputs})

    def check(self, model: Path, file: Path, inputs: Mapping[str, Sequence[int | str]] | None = None) -> None:
        """Raises InvalidArgument if the file `model` is another model, or if `inputs` has other shapes.

        `file` is where this was read from, for the error.
        """
        try:
            found = checksum(model)
        except OSError as error:
            raise InvalidArgument(f"{model} cannot be read: {error.strerror or error}") from None
        if found != self.checksum:
            raise InvalidArgument(f"{file} belongs to another model, {self.file}, and not to this {model.name}")
        for name, shape in (inputs or {}).items():
            own = self.inputs.get(name)
            if own is None or tuple(shape) != own:
                given = ",".join(map(str, shape))
                known = "; ".join(f"{n}={','.join(map(str, s))}" for n, s in self.inputs.items())
                raise InvalidArgument(f"{file} was made with --input {known}; {name}={given} is given")


class CutTimes(msgspec.Struct, frozen=True):
    """The times of a model's parts on one machine, for use on another machine. `target` is how it was named when they
    were compiled elsewhere."""

    model: PlannedModel
    machine: str
    threads: int
    points: tuple[CutPoint, ...]
    times: Times
    target: str | None = None

    def write(self, file: Path) -> None:
        places = tuple(point.tensors for point in self.points)
        t = self.times
        seconds = _Seconds(t.before, t.after, _by_name(t.encode), _by_name(t.decode))
        _write(file, PROFILE, _CutTimes(self.model, self.machine, self.threads, places, seconds, self.target))

    @classmethod
    def read(cls, file: Path) -> CutTimes:
        """Raises InvalidArgument for a file that is not a profile of cuts, of another format version, or damaged."""
        found = _read(file, PROFILE, _CutTimes, "zmq-offload profile MODEL --save FILE")
        s = found.seconds
        encode, decode = ({wire: coding[wire] for wire in WIRES} for coding in (s.encode, s.decode))
        points = tuple(map(CutPoint, found.places))
        times = Times(s.before, s.behind, encode, decode)
        return cls(found.model, found.machine, found.threads, points, times, found.target)

    def times_for(self, model: Path, points: Sequence[CutPoint], file: Path) -> Times:
        """The times. Raises InvalidArgument if they belong to another model or to other points."""
        self.model.check(model, file, {t.name: t.shape for t in points[0].tensors})
        if tuple(points) != self.points:
            raise InvalidArgument(f"{file} has other cuts than this release finds in {model.name}; create it again")
        return self.times


class _Seconds(msgspec.Struct):
    """`Times`, as the file has them."""

    before: tuple[Seconds, ...]
    behind: tuple[Seconds, ...]
    encode: dict[str, tuple[Seconds, ...]]
    decode: dict[str, tuple[Seconds, ...]]


class _CutTimes(msgspec.Struct):
    """`CutTimes`, as the file has them."""

    model: PlannedModel
    machine: str
    threads: int
    places: tuple[tuple[TensorSpec, ...], ...]
    seconds: _Seconds
    target: str | None = None

    def __post_init__(self) -> None:
        for tensor in (tensor for place in self.places for tensor in place):
            tensor.check()
        s = self.seconds
        for name, coding in (("encode", s.encode), ("decode", s.decode)):
            if missing := [wire for wire in WIRES if wire not in coding]:
                raise InvalidArgument(f"seconds.{name}: key {missing[0]!r} is missing")
        for times in (s.before, s.behind, *s.encode.values(), *s.decode.values()):
            if len(times) != len(self.places):
                raise InvalidArgument(f"seconds has {len(times)} times for {len(self.places)} places; expected as many")


class PlannedCut(msgspec.Struct, frozen=True):
    """One of several cuts of a plan: tensors as `compile --cut` and `--until` take them, and the encodings to compile.

    `predicted` has, by encoding, the seconds of the stages: `device`, `server` and `rest`, with encoding and decoding.
    """

    cut: tuple[str, ...]
    until: tuple[str, ...]
    wires: tuple[Wire, ...]
    predicted: dict[str, Any] = {}

    def __post_init__(self) -> None:
        for name, value in (("cut", self.cut), ("wires", self.wires)):
            if not value:
                raise InvalidArgument(f"{name} is empty; expected at least one")
        if unknown := sorted(set(self.predicted) - set(self.wires)):
            raise InvalidArgument(f"predicted has {unknown[0]!r}; expected encodings of wires")


class Plan(msgspec.Struct, frozen=True):
    """The choice for a model.

    `cut` is empty if the device runs everything. An empty `until` stands for the outputs of the model. `predicted` has
    the figures of the prediction, for people. `sealed` are the weights that must stay off the device. `cuts` are those
    that together serve a range of links, for `compile --cuts`; there are none in a plan of one cut.
    """

    model: PlannedModel
    cut: tuple[str, ...]
    until: tuple[str, ...]
    wire: Wire
    objective: str
    predicted: dict[str, Any]
    sealed: tuple[str, ...] = ()
    cuts: tuple[PlannedCut, ...] = ()

    @property
    def local(self) -> bool:
        return not self.cut

    def write(self, file: Path) -> None:
        _write(file, PLAN, self)

    @classmethod
    def read(cls, file: Path) -> Plan:
        """Raises InvalidArgument for a file that is not a plan, of another format version, or damaged."""
        return _read(file, PLAN, cls, "zmq-offload plan ... --save FILE")


def _by_name(coding: Mapping[Wire, tuple[float, ...]]) -> dict[str, tuple[float, ...]]:
    return {str(wire): seconds for wire, seconds in coding.items()}


def _write(file: Path, kind: str, value: msgspec.Struct) -> None:
    described = {"format": kind, "format_version": FORMAT_VERSION, **jsonfile.to_object(value)}
    try:
        file.write_bytes(jsonfile.encode(described))
    except OSError as error:
        raise FailedPrecondition(f"{file} cannot be written: {error.strerror or error}") from None


def _read(file: Path, kind: str, type_: type[T], made_by: str) -> T:
    try:
        value = jsonfile.parse(file.read_bytes())
    except OSError as error:
        raise InvalidArgument(f"{file} cannot be read: {error.strerror or error}") from None
    except InvalidArgument as error:
        raise InvalidArgument(f"{file} is not a {kind}: {error}; create one with: {made_by}") from None
    if value.get("format") != kind:
        raise InvalidArgument(f"{file} is not a {kind}; create one with: {made_by}")
    try:
        jsonfile.check_format_version(value, FORMAT_VERSION)
    except InvalidArgument as error:
        raise InvalidArgument(f"{file}: {error}; create it again with: {made_by}") from None
    try:
        return jsonfile.convert(value, type_)
    except InvalidArgument as error:
        raise InvalidArgument(f"{file} is damaged: {error}") from None
