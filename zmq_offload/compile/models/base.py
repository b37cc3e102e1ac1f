"""What every kind of model offers: signature, Relax module, reference, random inputs, and where tensors come from."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import tvm

from zmq_offload.compile.onnx.importer import Imported
from zmq_offload.compile.onnx.shapes import Dim
from zmq_offload.compile.reference import Reference
from zmq_offload.protocol.payload import Array
from zmq_offload.protocol.tensors import TensorSpec

PathLike: TypeAlias = str | os.PathLike[str]
Shapes: TypeAlias = Mapping[str, Sequence[Dim]]


@dataclass(frozen=True)
class Origins:
    """Where the tensors of a model come from.

    `weights` are the names of its weights. `sources` has for each tensor the tensors and weights from which it is
    computed directly; `inputs` have none.
    """

    weights: frozenset[str]
    sources: Mapping[str, tuple[str, ...]]
    inputs: frozenset[str]


class Model(ABC):
    """A model in one format. `name` is for messages: the file, or what else it is."""

    format: ClassVar[str]
    name: str

    @abstractmethod
    def inputs(self, shapes: Shapes) -> tuple[TensorSpec, ...]:
        """The inputs with the given shapes. The model is not imported. Raises InvalidArgument."""

    @abstractmethod
    def imported(self, shapes: Shapes, tensors: Iterable[str] = ()) -> Imported:
        """The model in Relax, with the names of its tensors. Those in `tensors` are kept. Raises InvalidArgument."""

    @abstractmethod
    def uncut(self, shapes: Shapes) -> tvm.IRModule:
        """The model in Relax, without names inside. Raises InvalidArgument."""

    @abstractmethod
    def reference(self) -> Reference:
        """Another runtime for the model. Raises CannotRun."""

    @abstractmethod
    def random_inputs(self, specs: Sequence[TensorSpec], shapes: Shapes, number: int) -> dict[str, Array]:
        """Random arrays that the model takes, others for each `number`."""

    @abstractmethod
    def tensors(self) -> frozenset[str]:
        """The names of the model's tensors, constants included."""

    @abstractmethod
    def modules(self) -> dict[str, tuple[str, ...]]:
        """For the path of each module, where the format knows modules, the tensors that leave it."""

    @abstractmethod
    def origins(self) -> Origins:
        """Where the model's tensors come from."""
