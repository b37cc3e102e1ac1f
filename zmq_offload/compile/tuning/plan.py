"""The request for tuning, and the division of its trials among functions. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

# With fewer candidates the search finds nothing.
LEAST_TRIALS = 8
# More than fit into a day.
MOST_TRIALS = 1_000_000


@dataclass(frozen=True)
class Tuning:
    """A request to use the tuning results in a folder, and to add to them first.

    Attributes
    ----------
    folder : pathlib.Path
        Folder with a database for each target.
    trials : int
        Candidates to measure, in total over all functions. 0 measures nothing.
    """

    folder: Path
    trials: int = 0


def share_out(trials: int, costs: Mapping[str, float]) -> dict[str, int]:
    """Divide `trials` among functions in proportion to their time (`costs`). The sum is exactly `trials`.

    A function that would get fewer than LEAST_TRIALS gets none, and the others share its trials; the slowest function
    always gets some. Ties are broken by name, so that the same costs give the same shares.
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
    """Estimate the seconds for `left` trials from `done` trials in `elapsed` seconds; None before the first."""
    return elapsed / done * left if done else None
