"""Make a plan: measure a model, or take measured times, predict what each split costs, and choose.

TVM must not have started its threads before: the number of threads is set by the caller, in TVM_NUM_THREADS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from zmq_offload.common.units import counted
from zmq_offload.compile.models.read import read_model
from zmq_offload.compile.onnx.shapes import Dim
from zmq_offload.compile.target import host_target
from zmq_offload.console.progress import Progress
from zmq_offload.plan import halves, restrictions
from zmq_offload.plan.confirm import measure_split, names_of
from zmq_offload.plan.costs import Costs, Network, Objective, Pair, Split, Stages, Times, Wire
from zmq_offload.plan.cover import cover
from zmq_offload.plan.cuttable import Cuttable, cuttable
from zmq_offload.plan.files import CutTimes, Plan, PlannedCut, PlannedModel
from zmq_offload.plan.frontiers import MOST_TENSORS
from zmq_offload.plan.links import links_around
from zmq_offload.plan.overhead import measure_overhead
from zmq_offload.plan.report import figures
from zmq_offload.plan.rules import Rules, allowed_splits
from zmq_offload.plan.search import Decision, decide


@dataclass(frozen=True)
class Measured:
    """The times of one side, taken on another machine: `file` is a profile that `zmq-offload profile --save` wrote."""

    file: Path
    times: CutTimes


@dataclass(frozen=True)
class Question:
    """What to plan for.

    `device` and `server` are None where this machine is measured: the device is then one thread, `slowdown` times
    slower. `cuts` is the number of cuts that together serve the links around this one. `confirm` is the number of
    splits that are compiled and run, `repeat` the number of runs for a median.
    """

    model: Path
    inputs: Mapping[str, Sequence[Dim]]
    network: Network
    wires: Sequence[Wire]
    objective: Objective
    server_threads: int
    device: Measured | None = None
    server: Measured | None = None
    slowdown: float | None = None
    sealed: Sequence[str] = ()
    private: Sequence[str] = ()
    cuts: int = 1
    most_tensors: int = MOST_TENSORS
    confirm: int = 4
    repeat: int = 15


@dataclass(frozen=True)
class Answer:
    """The plan, and what it was chosen from."""

    plan: Plan
    costs: Costs
    decision: Decision
    rules: Rules
    facts: tuple[tuple[str, str], ...]
    """The model and the two machines, in words."""
    links: tuple[Network, ...] = ()
    several: Mapping[Pair, Sequence[Split]] = field(default_factory=dict)
    """The links that several cuts shall serve, and those cuts, each with its encodings."""


def make_plan(question: Question, progress: Progress) -> Answer:
    """Choose the best split. Raises InvalidArgument for a model, profile or rule that cannot be used."""
    with progress.step(f"import {question.model}"):
        source = read_model(question.model)
        model = cuttable(source.imported(question.inputs), question.most_tensors)
        planned = PlannedModel.of(question.model, model.imported.inputs)
        device, server = (_times(side, question, model) for side in (question.device, question.server))
        rules = restrictions.rules_of(model, source.origins(), list(question.sealed), list(question.private))
        splits = allowed_splits(model.points, model.crossings, list(question.wires), rules)
    device, server = _measure_missing(question, model, device, server, progress)
    with progress.step("measure the overhead of a request"):
        overhead = measure_overhead()
    costs = Costs(model.points, model.crossings, device, server, question.network, overhead)
    confirm = 0 if question.device and question.server else question.confirm
    measure = partial(_measure, question, model, costs, progress)
    decision = decide(costs, splits, question.objective, confirm, measure)
    links = links_around(question.network) if question.cuts > 1 else []
    several = _several(question, costs, splits, links, measure if confirm else None)
    plan = _plan(question, model, planned, decision, [_planned_cut(costs, model, own) for own in several.values()])
    return Answer(plan, costs, decision, rules, _facts(question, model), tuple(links), several)


def _several(
    question: Question,
    costs: Costs,
    splits: Sequence[Split],
    links: Sequence[Network],
    measure: Callable[[Split], Stages] | None,
) -> dict[Pair, list[Split]]:
    """The cuts that serve these links together. Those chosen by estimates are measured, and chosen again, once."""
    if not links:
        return {}
    chosen = cover(costs, splits, question.objective, links, question.cuts)
    if measure is not None:
        for split in (own[0] for own in chosen.values() if own[0] not in costs.measured):
            costs.measured[split] = measure(split)
        chosen = cover(costs, splits, question.objective, links, question.cuts)
    return chosen


def _planned_cut(costs: Costs, model: Cuttable, splits: Sequence[Split]) -> PlannedCut:
    def stages(split: Split) -> dict[str, float]:
        p = costs.predict(split)
        return {"device": p.device + p.encode, "server": p.server, "rest": p.rest}

    cut, until = names_of(model, splits[0])
    return PlannedCut(cut, until, tuple(s.wire for s in splits), {s.wire: stages(s) for s in splits})


def _times(side: Measured | None, question: Question, model: Cuttable) -> Times | None:
    return None if side is None else side.times.times_for(question.model, model.points, side.file)


def _measure_missing(
    question: Question, model: Cuttable, device: Times | None, server: Times | None, progress: Progress
) -> tuple[Times, Times]:
    """The times of both sides. Missing ones are measured on this machine, in turns."""
    threads = [*([] if device else [1]), *([] if server else [question.server_threads])]
    if threads:
        with progress.step(f"measure both parts of {len(model.points) - 2} cuts") as say:
            taken = halves.measure_halves(model, host_target(), threads, question.repeat, say=say)
        device = device or taken[0].slowed(question.slowdown or 1.0)
        server = server or taken[-1]
    assert device is not None and server is not None
    return device, server


def _measure(question: Question, model: Cuttable, costs: Costs, progress: Progress, split: Split) -> Stages:
    """Compile and run a split. A side that has a profile of another machine keeps its predicted times."""
    target = host_target()
    threads = (1, question.server_threads)
    with progress.step(f"compile and run the cut at {model.points[split.start].name} as {split.wire}"):
        found = measure_split(
            question.model, model, split, (target, target), threads, question.repeat, question.slowdown or 1.0
        )
    predicted = costs.predict(split)
    if question.device is not None:
        found = replace(found, device=predicted.device + predicted.encode, rest=predicted.rest)
    if question.server is not None:
        found = replace(found, server=predicted.server, turn=0.0)
    return found


def _plan(
    question: Question, model: Cuttable, planned: PlannedModel, decision: Decision, cuts: Sequence[PlannedCut]
) -> Plan:
    chosen = decision.chosen
    cut, until = ((), ()) if chosen.local else names_of(model, chosen.split)
    sealed, objective, wire = tuple(question.sealed), decision.objective, chosen.split.wire
    return Plan(planned, cut, until, wire, objective, figures(chosen), sealed, tuple(cuts))


def _facts(question: Question, model: Cuttable) -> tuple[tuple[str, str], ...]:
    def elsewhere(side: Measured) -> str:
        return f"{side.times.machine}, {counted(side.times.threads, 'thread')} (measured there: {side.file})"

    slower = f", slowed down {question.slowdown:g} times" if question.slowdown else ""
    here = f"this machine, {counted(question.server_threads, 'thread')}"
    return (
        ("model", f"{question.model.name}, {'; '.join(map(str, model.imported.inputs))}"),
        ("device", elsewhere(question.device) if question.device else f"one thread of this machine{slower}"),
        ("server", elsewhere(question.server) if question.server else here),
    )
