"""Makes the traces that come with the package: `python -m zmq_offload.testing.link.synthesis [FOLDER]`.

They are made up, and none was recorded. Their bandwidths, delays and stalls are of the size that published measurements
report: of 5G, A. Narayanan et al., "A variegated look at 5G in the wild" (SIGCOMM 2021); of LTE and of trains, L. Li et
al., "A measurement study on TCP behaviors in HSPA+ networks on high-speed rails" (INFOCOM 2015) and V. Raca et al.,
"Beyond throughput: a 4G LTE dataset" (MMSys 2018); of Starlink, whose satellites change every 15 s, F. Michel et al.,
"A first look at Starlink performance" (IMC 2022).
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable
from pathlib import Path

from zmq_offload.testing.link.trace import COLUMNS, NAMES

STEP = 0.5
"""Seconds between two rows."""

SECONDS = 120

Row = tuple[float, float, float, bool]
"""Mbit/s up and down, one-way delay in ms, whether nothing passes."""


class Wander:
    """A value that wanders around 1, and comes back: the exponential of a process of Ornstein and Uhlenbeck."""

    def __init__(self, chance: random.Random, spread: float, seconds: float) -> None:
        self._chance, self._spread, self._keeps = chance, spread, math.exp(-STEP / seconds)
        self._value = chance.gauss(0, spread)

    def next(self) -> float:
        """The value after another step. Its logarithm has the standard deviation `spread`, and forgets in `seconds`."""
        self._value *= self._keeps
        self._value += self._chance.gauss(0, self._spread * math.sqrt(1 - self._keeps**2))
        return math.exp(self._value)


def steady_5g(chance: random.Random) -> Callable[[float], Row]:
    """A phone that stays near a cell in the middle of the band."""
    up, down, delay = Wander(chance, 0.08, 5), Wander(chance, 0.12, 5), Wander(chance, 0.08, 2)
    return lambda at: (60 * up.next(), 350 * down.next(), 9 * delay.next(), False)


def cell_edge(chance: random.Random) -> Callable[[float], Row]:
    """A person who walks away from a cell, and back: in the middle a fortieth of the bandwidth, and short gaps."""
    fades, delay = Wander(chance, 0.25, 2), Wander(chance, 0.15, 3)

    def row(at: float) -> Row:
        far = math.sin(math.pi * at / SECONDS) ** 2
        level = fades.next() * 40**-far
        return 45 * level, 180 * level, (12 + 50 * far) * delay.next(), far > 0.8 and chance.random() < 0.05

    return row


def train(chance: random.Random) -> Callable[[float], Row]:
    """A train with a hand-over every 12 s or so, and three tunnels."""
    level, delay = Wander(chance, 0.5, 6), Wander(chance, 0.25, 4)
    tunnels = ((28.0, 35.0), (64.0, 68.0), (95.0, 105.0))
    hand_over = chance.uniform(8, 14)

    def row(at: float) -> Row:
        nonlocal hand_over
        stalled = any(begin <= at < end for begin, end in tunnels)
        if at >= hand_over:
            hand_over, stalled = at + chance.uniform(8, 14), True
        factor = level.next()
        return 12 * factor, 30 * factor, 35 * delay.next(), stalled

    return row


def busy_wifi(chance: random.Random) -> Callable[[float], Row]:
    """A wireless network on which others begin and end transfers, every few seconds."""
    level, delay = Wander(chance, 0.2, 1), Wander(chance, 0.4, 1)
    others, until = 0, 0.0

    def row(at: float) -> Row:
        nonlocal others, until
        if at >= until:
            others, until = chance.choice((0, 0, 1, 1, 2, 4, 8)), at + chance.uniform(2, 9)
        share = level.next() / (1 + others)
        return 90 * share, 120 * share, (2 + 4 * others) * delay.next(), False

    return row


def lte_rush_hour(chance: random.Random) -> Callable[[float], Row]:
    """A full cell: slow, and slower for tens of seconds."""
    level, delay = Wander(chance, 0.6, 15), Wander(chance, 0.3, 5)

    def row(at: float) -> Row:
        factor = level.next()
        return 4 * factor, 11 * factor, 45 * delay.next() / min(1.0, factor) ** 0.5, False

    return row


def satellite(chance: random.Random) -> Callable[[float], Row]:
    """A satellite in a low orbit; every 15 s there is another, after a short gap."""
    up = down = delay = 0.0
    wander = Wander(chance, 0.15, 2)

    def row(at: float) -> Row:
        nonlocal up, down, delay
        begins = at % 15 < STEP
        if begins:
            up, down, delay = chance.uniform(8, 22), chance.uniform(80, 230), chance.uniform(18, 32)
        factor = wander.next()
        return up * factor, down * factor, delay / factor**0.5, begins and at > 0

    return row


MAKERS = dict(zip(NAMES, (steady_5g, cell_edge, train, busy_wifi, lte_rush_hour, satellite), strict=True))


def made(name: str) -> str:
    """The trace of a name, as the text of its file."""
    row = MAKERS[name](random.Random(name))
    lines = [",".join(COLUMNS)]
    for number in range(int(SECONDS / STEP)):
        up, down, delay, stalled = row(number * STEP)
        lines.append(f"{number * STEP:g},{up:.3g},{down:.3g},{delay:.3g},{int(stalled)}")
    return "\n".join(lines) + "\n"


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "traces"
    for name in NAMES:
        (folder / f"{name}.csv").write_text(made(name))


if __name__ == "__main__":
    main()
