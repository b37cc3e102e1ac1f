"""A recorded link: bandwidth, delay and stalls over time. Pure, but for the files that it is read from.

A trace is a CSV file: a row for each change, which holds until the next row. After the last row, which is as long as
the one before it, the trace begins again.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from zmq_offload.errors import InvalidArgument

COLUMNS = ("seconds", "up", "down", "delay", "stall")
"""The columns of a trace: seconds from its start, Mbit/s up and down, one-way delay in ms, 1 where nothing passes."""

NAMES = ("steady-5g", "cell-edge", "train", "busy-wifi", "lte-rush-hour", "satellite")
"""The traces that come with the package."""

_MOST = 1e6


class Moment(NamedTuple):
    """What a link is like from a moment on.

    Parameters
    ----------
    seconds : float
        From the start of the trace.
    up, down : float
        Bits of payload per second to the broker, and back.
    delay : float
        Seconds that a byte travels, one way.
    stalled : bool
        Whether nothing passes. Connections stay and wait.
    """

    seconds: float
    up: float
    down: float
    delay: float
    stalled: bool


@dataclass(frozen=True)
class Trace:
    """A link over time.

    Parameters
    ----------
    name : str
        Its name or file, for people.
    moments : tuple of Moment
        At least one, in order, the first at 0 seconds.

    Examples
    --------
    >>> Trace.named("train").at(30.0).stalled
    True
    """

    name: str
    moments: tuple[Moment, ...]

    @classmethod
    def parse(cls, text: str, name: str) -> Trace:
        """Read a trace.

        Parameters
        ----------
        text : str
            The contents of a CSV file with the columns `COLUMNS`.
        name : str
            Its name or file.

        Returns
        -------
        Trace

        Raises
        ------
        InvalidArgument
            The text is something else; the message names the line and the column.
        """
        lines = [(at, line.strip()) for at, line in enumerate(text.splitlines(), 1) if line.strip()]
        head = ",".join(COLUMNS)
        if not lines or lines[0][1].replace(" ", "") != head:
            raise InvalidArgument(f"{name}: line 1 is {lines[0][1] if lines else ''!r}; expected {head}")
        if len(lines) == 1:
            raise InvalidArgument(f"{name} has no rows; expected one for each change of the link")
        moments = tuple(_moment(f"{name}: line {at}", line) for at, line in lines[1:])
        if moments[0].seconds:
            raise InvalidArgument(f"{name}: line {lines[1][0]} is at {moments[0].seconds:g} seconds; expected 0")
        for (before, after), (at, _) in zip(pairwise(moments), lines[2:], strict=True):
            if after.seconds <= before.seconds:
                raise InvalidArgument(
                    f"{name}: line {at} is at {after.seconds:g} seconds; expected more than {before.seconds:g}"
                )
        if all(moment.stalled for moment in moments):
            raise InvalidArgument(f"{name} lets nothing through; expected a row without a stall")
        return cls(name, moments)

    @classmethod
    def read(cls, file: Path) -> Trace:
        """Read a trace from a file. Raises InvalidArgument if that cannot be read, or as `parse`."""
        try:
            text = file.read_text()
        except (OSError, UnicodeDecodeError) as error:
            said = error.strerror if isinstance(error, OSError) else "it is not text"
            known = ", ".join(NAMES)
            raise InvalidArgument(f"{file} cannot be read: {said}; use a CSV file, or one of {known}") from None
        return cls.parse(text, str(file))

    @classmethod
    def named(cls, name: str) -> Trace:
        """One of the traces that come with the package. Raises InvalidArgument for another name."""
        if name not in NAMES:
            raise InvalidArgument(f"trace {name!r} is unknown; use a CSV file, or one of {', '.join(NAMES)}")
        return cls.parse((resources.files(__package__) / "traces" / f"{name}.csv").read_text(), name)

    @classmethod
    def find(cls, text: str) -> Trace:
        """The trace of a name or of a file, as a person writes it. Raises InvalidArgument if there is neither."""
        is_file = "/" in text or text.endswith(".csv") or Path(text).exists()
        return cls.read(Path(text)) if is_file and text not in NAMES else cls.named(text)

    @cached_property
    def length(self) -> float:
        """Seconds until the trace begins again."""
        last = self.moments[-1].seconds
        return last + (last - self.moments[-2].seconds if len(self.moments) > 1 else 1.0)

    @cached_property
    def _starts(self) -> list[float]:
        return [moment.seconds for moment in self.moments]

    def at(self, seconds: float) -> Moment:
        """What the link is like so many seconds after its start. The trace repeats."""
        return self.moments[bisect.bisect_right(self._starts, seconds % self.length) - 1]

    def changes(self) -> Iterator[Moment]:
        """Its moments for ever, with `seconds` from the start of the first time."""
        began = 0.0
        while True:
            for moment in self.moments:
                yield moment._replace(seconds=began + moment.seconds)
            began += self.length


def _moment(where: str, line: str) -> Moment:
    fields = line.split(",")
    if len(fields) != len(COLUMNS):
        raise InvalidArgument(f"{where} has {len(fields)} fields; expected {len(COLUMNS)}: {','.join(COLUMNS)}")
    seconds, up, down, delay, stall = map(_number, [where] * len(fields), COLUMNS, fields)
    if stall not in (0, 1):
        raise InvalidArgument(f"{where}: stall is {stall:g}; expected 0 or 1")
    for name, rate in (("up", up), ("down", down)):
        if not rate and not stall:
            raise InvalidArgument(f"{where}: {name} is 0; expected more, or a stall of 1")
    return Moment(seconds, up * 1e6, down * 1e6, delay / 1e3, bool(stall))


def _number(where: str, column: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= _MOST:
        raise InvalidArgument(f"{where}: {column} is {text.strip()!r}; expected a number from 0 to {_MOST:g}")
    return number
