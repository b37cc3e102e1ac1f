"""`python -m tests.support.signed_worker`: echo workers that serve models with signatures, too.

They return their inputs under the names of their outputs, so that a client that reads signatures can be tested without
TVM. `identity` has two versions. `fails` fails.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import workers.__main__
import workers.loop
import workers.supervisor
from workers.supervisor import Supervisor
from zmq_offload.artifacts.repository import ModelVersion
from zmq_offload.protocol.payload import Array
from zmq_offload.protocol.tensors import TensorSpec

Signature = dict[str, tuple[str, tuple[int, ...]]]
SIGNATURES: dict[str, tuple[Signature, Signature]] = {
    "identity": ({"x": ("FP32", (-1, 3))}, {"y": ("FP32", (-1, 3))}),
    "pair": (
        {"a": ("INT32", (2,)), "b": ("FP32", (-1,))},
        {"c": ("INT32", (2,)), "d": ("FP32", (-1,))},
    ),
    "fails": ({"x": ("FP32", (1,))}, {"y": ("FP32", (1,))}),
    "row": ({"x": ("FP32", (1, -1))}, {"y": ("FP32", (1, -1))}),
}
"""Inputs and outputs of each model."""
VERSIONS = {"identity": (1, 2)}
"""The versions of a model; others have version 1."""


def _specs(signature: Signature) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, *described) for name, described in signature.items())


class Identity:
    """Returns its inputs."""

    def __init__(self, name: str, version: int) -> None:
        inputs, outputs = map(_specs, SIGNATURES[name])
        self.model = ModelVersion(name, version, inputs, outputs, None, "", "")

    def run(self, requests: Sequence[Sequence[Array]]) -> list[list[Array]]:
        if self.model.name == "fails":
            raise ArithmeticError("this model always fails")
        return [list(inputs) for inputs in requests]  # as the echo model does: encoding refers to them


class SignedWorker(workers.loop.Worker):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        for name in SIGNATURES:
            for version in VERSIONS.get(name, (1,)):
                self._executors[name, version] = Identity(name, version)


class SignedSupervisor(Supervisor):
    """Starts this module, not `workers`, as its processes."""

    def __init__(self, config: Any, arguments: Sequence[str]) -> None:
        super().__init__(config, arguments)
        self._command = [sys.executable, "-m", "tests.support.signed_worker", *arguments]


if __name__ == "__main__":
    workers.loop.Worker = SignedWorker  # type: ignore[misc]
    workers.supervisor.Supervisor = SignedSupervisor  # type: ignore[misc]
    sys.exit(workers.__main__.main())
