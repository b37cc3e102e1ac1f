"""How accurate a quantized model is: its outputs beside those of the model that it was made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from zmq_offload.protocol.payload import Array


@dataclass(frozen=True)
class Quality:
    """The accuracy of one output over all samples.

    Attributes
    ----------
    output : str
        Name of the output.
    largest : float
        Largest difference, as a fraction of the largest value.
    mean : float
        Mean difference, as a fraction of the mean magnitude.
    cosine : float
        Cosine of the angle between the two outputs; 1 if they point the same way.
    decibels : float
        Ratio of signal to noise: 20 dB is noise of a tenth of the signal. Infinite if nothing differs.
    agreement : float, optional
        For an output of scores (a row of numbers for each input): the fraction of rows with the same largest element.

    Examples
    --------
    >>> print(Quality("y", 0.02, 0.01, 0.9998, 34.0, 1.0))
    y: off by at most 2.00%, 1.00% on average; cosine 0.99980, signal to noise 34.0 dB; same top-1 100.0%
    """

    output: str
    largest: float
    mean: float
    cosine: float
    decibels: float
    agreement: float | None = None

    def __str__(self) -> str:
        top = "" if self.agreement is None else f"; same top-1 {self.agreement:.1%}"
        return (
            f"{self.output}: off by at most {self.largest:.2%}, {self.mean:.2%} on average; cosine {self.cosine:.5f}, "
            f"signal to noise {self.decibels:.1f} dB{top}"
        )


def measure(name: str, pairs: Sequence[tuple[Array, Array]]) -> Quality:
    """Compare an output of two models: pairs of the right one and the other, one pair for each sample."""
    rows = [_rows(right, other) for right, other in pairs]
    same = [hit for hits in rows if hits is not None for hit in hits]
    sizes = [(np.asarray(a, np.float64).ravel(), np.asarray(b, np.float64).ravel()) for a, b in pairs]
    if any(a.shape != b.shape for a, b in sizes):  # a number of results that depends on values, such as boxes
        return Quality(name, np.inf, np.inf, 0.0, -np.inf, None)
    right, other = (np.concatenate([pair[side] for pair in sizes]) for side in (0, 1))
    use = np.isfinite(right)
    noise = np.where(np.isfinite(other), other, np.inf)[use] - right[use]
    right, other = right[use], other[use]
    size, apart = np.abs(right), np.abs(noise)
    power, lost = float((right**2).sum()), float((noise**2).sum())
    length = np.sqrt(power * float((other**2).sum()))
    return Quality(
        name,
        _fraction(apart.max(initial=0.0), size.max(initial=0.0)),
        _fraction(apart.sum(), size.sum()),
        float((right * other).sum() / length) if length else float(power == lost),
        10 * float(np.log10(power / lost)) if power and lost else (np.inf if not lost else -np.inf),
        float(np.mean(same)) if same else None,
    )


def _fraction(part: float, whole: float) -> float:
    if part == 0:
        return 0.0
    return float(part / whole) if whole else float("inf")


def _rows(right: Array, other: Array) -> list[bool] | None:
    """Whether each row of scores has its largest element at the same place; None for an output of another form."""
    if right.ndim != 2 or right.shape[1] < 2 or right.shape != other.shape or right.dtype.kind != "f":
        return None
    return [bool(hit) for hit in right.argmax(1) == other.argmax(1)]
