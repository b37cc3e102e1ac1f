"""Bandwidths, times and sizes as a person writes them, with units."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from zmq_offload.errors import InvalidArgument

_BANDWIDTHS = {"bit": 1.0, "kbit": 1e3, "Mbit": 1e6, "Gbit": 1e9}
_TIMES = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_QUANTITY = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]*)")

FASTEST = 1e12
"""Bits per second. A higher bandwidth is taken for a typing error."""

LONGEST = 3600.0
"""Seconds. A longer time is taken for a typing error."""


def counted(count: int, noun: str, more: str = "s") -> str:
    """Return "1 thread" or "2 threads". `more` is the ending of the plural: counted(2, "process", "es")."""
    return f"{count} {noun}{more if count != 1 else ''}"


def bandwidth(text: str) -> float:
    """Parse "50Mbit", "1.5 Gbit" or "800kbit/s" as bits per second.

    Raises InvalidArgument for anything else, also for a number without a unit, which could be bits or bytes.
    """
    value = _parse("bandwidth", text.removesuffix("/s"), text, _BANDWIDTHS, "Mbit")
    if not 0 < value <= FASTEST:
        raise InvalidArgument(f"bandwidth {text!r} is out of range; use more than 0 and at most 1000Gbit")
    return value


def duration(text: str) -> float:
    """Parse "10ms", "250us" or "1.5s" as seconds. Raises InvalidArgument for anything else, also a bare number."""
    value = _parse("time", text, text, _TIMES, "ms")
    if value > LONGEST:
        raise InvalidArgument(f"time {text!r} is out of range; use at most an hour")
    return value


def bandwidth_text(bits: float) -> str:
    """Write bits per second as `bandwidth` reads them, to three digits: "50Mbit"."""
    unit = next(u for u in ("Gbit", "Mbit", "kbit", "bit") if bits >= _BANDWIDTHS[u] or u == "bit")
    return f"{bits / _BANDWIDTHS[unit]:.3g}{unit}"


def size_text(count: float) -> str:
    """Write bytes to three digits: "1.5 GiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:,.1f} TiB"


def gpu_text(use: Mapping[str, Any]) -> str:
    """Write how much of a GPU is used, as a status has it: "9.31 GiB of 79.6 GiB, 87%"."""
    known = [size_text(use[key]) for key in ("used_bytes", "total_bytes") if key in use]
    parts = [" of ".join(known)] if known else []
    if "busy_percent" in use:
        parts.append(f"{use['busy_percent']}%")
    return ", ".join(parts) or "unknown"


def time_text(seconds: float) -> str:
    """Write a short time to three digits: "12.3 ms"."""
    if abs(seconds) < 999.5e-6:
        return f"{seconds * 1e6:.3g} us"
    return f"{seconds * 1e3:.3g} ms" if abs(seconds) < 0.9995 else f"{seconds:.3g} s"


def age_text(seconds: float) -> str:
    """Write a long time by its two largest units: "2 h 5 min"."""
    seconds = int(seconds)
    for (unit, length), (below, part) in (
        (("d", 86400), ("h", 3600)),
        (("h", 3600), ("min", 60)),
        (("min", 60), ("s", 1)),
    ):
        if seconds >= length:
            return f"{seconds // length} {unit} {seconds % length // part} {below}"
    return f"{seconds} s"


def _parse(what: str, text: str, given: str, units: Mapping[str, float], usual: str) -> float:
    match = _QUANTITY.fullmatch(text.strip())
    if match is None:
        raise InvalidArgument(f"{what} {given!r} is not a number with a unit; write it like 50{usual}")
    number, unit = match.groups()
    if not unit:
        raise InvalidArgument(f"{what} {given!r} has no unit; did you mean {number}{usual}?")
    known = {name.lower(): factor for name, factor in units.items()}
    if unit.lower() not in known:
        raise InvalidArgument(f"{what} {given!r} has an unknown unit; use {', '.join(units)}")
    return float(number) * known[unit.lower()]
