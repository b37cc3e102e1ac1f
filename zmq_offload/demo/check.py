"""Whether the split model computes what the uncut one does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zmq_offload.demo.items import Item
from zmq_offload.demo.model import INPUT

Array = np.ndarray[Any, Any]

TVM_BAR = 1e-4
ORT_BAR = 1e-3


@dataclass(frozen=True)
class Verdict:
    """The largest difference of all frames' elements from a reference, and how large it may be."""

    reference: str
    difference: float
    bar: float

    @property
    def passed(self) -> bool:
        return self.difference <= self.bar  # false for NaN, too

    def __str__(self) -> str:
        word = "PASS" if self.passed else "OVER THE BAR"
        return f"{self.reference:<24} {self.difference:.2e}   bar {self.bar:.0e}   {word}"


def compare(name: str, frames: Iterable[Item], references: Sequence[Array], bar: float) -> Verdict:
    """The verdict on frames by their pictures' reference outputs."""
    worst = [largest_difference(frame.output, references[frame.picture]) for frame in frames]
    return Verdict(name, float(np.max(worst)), bar)


def largest_difference(output: Array, reference: Array) -> float:
    """Of all elements; NaN if one is in either. Infinite for another shape."""
    if output.shape != reference.shape:
        return float("inf")
    return float(np.abs(output.astype(np.float64) - reference.astype(np.float64)).max())


def run_uncut(library: Path, pictures: Sequence[Array]) -> list[Array]:
    """The first output of the uncut model, compiled by TVM, for each picture."""
    from zmq_offload.compile.uncut import UncutModel

    model = UncutModel(library)
    return [model(picture)[0] for picture in pictures]


def run_onnxruntime(model: Path, pictures: Sequence[Array]) -> list[Array]:
    """The first output of the model's file in ONNX Runtime, for each picture."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # its warnings on the graph are nothing that a user of the demo could act on
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return [np.asarray(session.run(None, {INPUT: picture})[0]) for picture in pictures]
