"""Which split is best. Pure: what measures a split is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from zmq_offload.plan.costs import OBJECTIVES, Costs, Objective, Prediction, Split, Stages, ranked


@dataclass(frozen=True)
class Decision:
    """All predictions, the best first; the chosen one; and the one of no split, be it allowed or not."""

    ranking: tuple[Prediction, ...]
    chosen: Prediction
    local: Prediction
    objective: Objective

    @property
    def gain(self) -> float:
        """How many times better than staying local the choice is, by the objective."""
        least = OBJECTIVES[self.objective]
        return least(self.local) / max(least(self.chosen), 1e-12)


def decide(
    costs: Costs,
    splits: Sequence[Split],
    objective: Objective,
    confirm: int = 0,
    measure: Callable[[Split], Stages] | None = None,
) -> Decision:
    """Choose among `splits`, at least one. Up to `confirm` of the best are measured by `measure`, until the best is one
    of them; then only such are chosen. The first is the best of those that end with the model: what runs between two
    cuts is a difference of measured times, and the least of a thousand such is the luckiest rather than the best. (No
    split at all counts as measured: the whole model always is.)"""
    ranking = ranked(costs, splits, objective)
    if measure is not None and confirm:
        last = costs.local.end
        best = next((p for p in ranking if p.split.end == last), ranking[0])
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
