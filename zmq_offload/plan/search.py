"""Chooses the best split. Pure: the function that measures one is an argument."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from zmq_offload.plan.costs import OBJECTIVES, Costs, Objective, Prediction, Split, Stages, ranked


@dataclass(frozen=True)
class Decision:
    """All predictions, best first; the chosen one; and that of the device alone, whether allowed or not."""

    ranking: tuple[Prediction, ...]
    chosen: Prediction
    local: Prediction
    objective: Objective

    @property
    def gain(self) -> float:
        """How many times better than the device alone the choice is, by the objective."""
        least = OBJECTIVES[self.objective]
        return least(self.local) / max(least(self.chosen), 1e-12)


def decide(
    costs: Costs,
    splits: Sequence[Split],
    objective: Objective,
    confirm: int = 0,
    measure: Callable[[Split], Stages] | None = None,
) -> Decision:
    """Choose among `splits`, of which there is at least one.

    With `measure`, up to `confirm` of the best splits are measured, until the best one is measured, and only a measured
    one is chosen. The device alone counts as measured. The first split to measure is the best of those that end with
    the model. A part between two cuts is estimated by a difference of measured times, and the best of a thousand such
    estimates is likely the one with the luckiest error.
    """
    ranking = ranked(costs, splits, objective)
    if measure is not None and confirm:
        last = costs.local.end
        best = next((p for p in ranking if p.split.end == last), ranking[0])
        if best.local:  # better than all that end with the model
            best = ranking[0]
        for _ in range(confirm):
            if best.measured:
                break
            costs.measured[best.split] = measure(best.split)
            ranking = ranked(costs, splits, objective)
            best = ranking[0]
        chosen = next(p for p in ranking if p.measured)
    else:
        chosen = ranking[0]
    return Decision(tuple(ranking), chosen, costs.predict(costs.local), objective)
