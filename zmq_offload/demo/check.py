"""Compares the outputs of the split model with those of the uncut one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zmq_offload.demo.items import Item
from zmq_offload.demo.model import INPUT
from zmq_offload.protocol.payload import Array

TVM_BAR = 1e-4
ORT_BAR = 1e-3
"""The largest differences that are allowed."""


@dataclass(frozen=True)
class Verdict:
    """The largest difference of any element of any item from a reference, and the largest that is allowed."""

    reference: str
    difference: float
    bar: float

    @property
    def passed(self) -> bool:
        return self.difference <= self.bar  # false for NaN

    def __str__(self) -> str:
        word = "PASS" if self.passed else "OVER THE BAR"
        return f"{self.reference:<24} {self.difference:.2e}   bar {self.bar:.0e}   {word}"


def compare(name: str, items: Iterable[Item], references: Sequence[Array], bar: float) -> Verdict:
    """Compare each item with the reference output of its picture."""
    worst = [largest_difference(item.output, references[item.picture]) for item in items]
    return Verdict(name, float(np.max(worst)), bar)


def largest_difference(output: Array, reference: Array) -> float:
    """The largest difference of any element: NaN if either array has a NaN, infinite if the shapes differ."""
    if output.shape != reference.shape:
        return float("inf")
    return float(np.abs(output.astype(np.float64) - reference.astype(np.float64)).max())


def run_uncut(library: Path, pictures: Sequence[Array]) -> list[Array]:
    """The first output of the uncut model, compiled with TVM, for each picture."""
    from zmq_offload.compile.uncut import UncutModel

    model = UncutModel(library)
    return [model(picture)[0] for picture in pictures]


def run_onnxruntime(model: Path, pictures: Sequence[Array]) -> list[Array]:
    """The first output of the ONNX file in ONNX Runtime, for each picture."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only: a user of the demo can do nothing about warnings on the graph
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return [np.asarray(session.run(None, {INPUT: picture})[0]) for picture in pictures]
