"""Metrics as Prometheus reads them: its text format, version 0.0.4. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

from zmq_offload.telemetry.histograms import Buckets

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(slots=True)
class Family:
    """All series of one name. They have the same labels, and other values of them.

    Parameters
    ----------
    name
        With the unit, and `_total` at the end of a counter's.
    kind
        What the values are. A counter never falls while its program runs.
    help
        What they mean, in a sentence.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    _samples: list[tuple[Mapping[str, str], float | Buckets]] = field(default_factory=list)

    def add(self, value: float, labels: Mapping[str, str] = {}) -> None:
        """Add a series of a counter or gauge."""
        assert self.kind != "histogram"
        self._samples.append((labels, value))

    def add_buckets(self, buckets: Buckets, labels: Mapping[str, str] = {}) -> None:
        """Add a series of a histogram."""
        assert self.kind == "histogram"
        self._samples.append((labels, buckets))

    def under(self, name: str, help: str) -> Family:
        """The same series by another name."""
        return Family(name, self.kind, help, self._samples)

    def lines(self) -> Iterator[str]:
        """The family in the text format; nothing if it has no series."""
        if not self._samples:
            return
        yield f"# HELP {self.name} {_escaped(self.help)}"
        yield f"# TYPE {self.name} {self.kind}"
        for labels, value in self._samples:
            pairs = [_pair(name, text) for name, text in labels.items()]
            if isinstance(value, Buckets):
                yield from _histogram(self.name, pairs, value)
            else:
                yield f"{self.name}{_braces(pairs)} {number(value)}"


def render(families: Iterable[Family]) -> bytearray:
    """The text that is served at /metrics. The names of the families are different."""
    return text_of(line for family in families for line in family.lines())


def text_of(lines: Iterable[str]) -> bytearray:
    """These lines as the bytes that are sent.

    They may be 10 MB. So they are put together line by line: nothing here keeps the interpreter's lock for long.
    """
    made = bytearray()
    for line in lines:
        # A lone surrogate, which no message can carry, must not cost the whole page.
        made += f"{line}\n".encode("utf-8", "replace")
    return made


def number(value: float) -> str:
    """A value as the text format writes it."""
    if isinstance(value, int):
        return str(int(value))
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return "NaN" if math.isnan(value) else repr(value)


def _histogram(name: str, pairs: list[str], buckets: Buckets) -> Iterator[str]:
    cumulative = buckets.cumulative()
    count = cumulative[-1]
    begin = f"{name}_bucket{{{''.join(f'{pair},' for pair in pairs)}"  # most lines of a page begin so
    for bound, upto in zip(_written(buckets.bounds), cumulative, strict=True):
        yield f'{begin}le="{bound}"}} {upto}'
    yield f"{name}_sum{_braces(pairs)} {number(buckets.sum)}"
    yield f"{name}_count{_braces(pairs)} {count}"


@lru_cache
def _written(bounds: tuple[float, ...]) -> list[str]:
    """The values of the label `le`."""
    return [number(float(bound)) for bound in (*bounds, math.inf)]


def _braces(pairs: list[str]) -> str:
    return f"{{{','.join(pairs)}}}" if pairs else ""


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _pair(label: str, text: str) -> str:
    quoted = _escaped(text).replace('"', '\\"')
    return f'{label}="{quoted}"'
