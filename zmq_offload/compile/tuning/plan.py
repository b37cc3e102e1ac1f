"""What is asked of tuning, how the trials are shared out among functions, and when they will be done. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

# Fewer candidates than this tell nothing of a function.
LEAST_TRIALS = 8
# A day has time for less.
MOST_TRIALS = 1_000_000


@dataclass(frozen=True)
class Tuning:
    """Use what was found in `folder`, after `trials` candidates (0: none, no time spent) in all."""

    folder: Path
    trials: int = 0


def share_out(trials: int, costs: Mapping[str, float]) -> dict[str, int]:
    """How many of `trials` each function gets, by its part of the time (`costs`): exactly `trials` in all.

    Functions whose part comes to less than LEAST_TRIALS get none, and what they would have had goes to the others; the
    costliest always has some. Ties are settled by name, so that the same costs give the same shares.
    """
    chosen = sorted((key for key in costs if costs[key] > 0), key=lambda key: (-costs[key], key))
    while len(chosen) > 1 and trials * costs[chosen[-1]] / sum(costs[key] for key in chosen) < LEAST_TRIALS:
        chosen.pop()
    total = sum(costs[key] for key in chosen)
    shares = {key: int(trials * costs[key] / total) for key in chosen}
    for key in chosen[: trials - sum(shares.values())]:
        shares[key] += 1
    return shares


def seconds_left(elapsed: float, done: int, left: int) -> float | None:
    """How long `left` trials will take if they go on as `done` did in `elapsed` seconds; None while none is done."""
    return elapsed / done * left if done else None
