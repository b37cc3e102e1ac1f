"""Tune the functions of a model: the loop over rounds, and what is kept of each."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import tirx
from tvm.ir import IRModule
from tvm.ir.transform import Sequential
from tvm.target import Target

from zmq_offload.common.cores import usable_cores
from zmq_offload.compile.interrupt import interruptible, patiently
from zmq_offload.compile.pipeline import fusing
from zmq_offload.compile.tuning.database import METASCHEDULE, Choice, Database, key_of, module_of, variants
from zmq_offload.compile.tuning.measurer import Measurer
from zmq_offload.compile.tuning.plan import seconds_left, share_out
from zmq_offload.compile.tuning.report import Summary, TuningProgress
from zmq_offload.compile.tuning.search import search
from zmq_offload.errors import OffloadError
from zmq_offload.schedules.machine import machine_of
from zmq_offload.schedules.measure import arguments, built, seconds
from zmq_offload.schedules.schedule import schedule_or_default

logger = logging.getLogger(__name__)

# Candidates of one search: then what was found is kept, and it is looked at whether to stop.
ROUND = 16
_ONE_CORE_PER_THREAD = -2  # tvm::runtime::threading::ThreadGroup::kSpecifyOneCorePerThread
# Of a candidate's result from the rules', relative to the largest value: sums in another order differ by less.
TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class _Task:
    """A function to tune, the times it is called in a run of the model, and how long it takes by the rules."""

    func: tirx.PrimFunc
    key: str
    name: str
    calls: int
    database: Database
    rule_us: float

    @property
    def target(self) -> Target:
        return self.database.target


def tune(
    parts: Sequence[tuple[IRModule, Target]],
    folder: Path,
    trials: int,
    progress: Callable[[TuningProgress], None] | None = None,
) -> Summary:
    """Spend `trials` on the functions of modules for this machine's CPU, shared out by how long they take.

    What was tried before, for the same function and target, counts: tuning again with as many trials does nothing, with
    more goes on. Ctrl-C ends it within a few seconds, with everything found so far kept; the second one is raised.

    Raises FailedPrecondition for a folder that cannot be written or is damaged, or that another process tunes with.
    """
    databases = {str(target): Database(folder, target) for _, target in parts}
    with contextlib.ExitStack() as stack:
        stopped = stack.enter_context(_interruptible())
        for database in databases.values():
            stack.enter_context(database.writing())
        return _tune(_tasks(parts, databases, stopped), trials, stopped, progress)


def _tune(
    tasks: dict[str, _Task], trials: int, stopped: Callable[[], bool], progress: Callable[[TuningProgress], None] | None
) -> Summary:
    plan = share_out(trials, {key: task.rule_us * task.calls for key, task in tasks.items()})
    known = {key: task.database.choices().get(task.key) for key, task in tasks.items()}
    choices = {key: known[key] or Choice(task.name, task.rule_us) for key, task in tasks.items()}
    left = {key: max(0, count - choices[key].trials) for key, count in plan.items()}
    total, done, started = sum(left.values()), 0, time.monotonic()
    with contextlib.ExitStack() as stack:
        measurers: dict[str, Measurer] = {}
        for key, count in left.items():
            task = tasks[key]
            text = str(task.target)
            if text not in measurers:
                measurers[text] = stack.enter_context(Measurer(task.target))
            while count > 0 and not stopped():
                spent, choice = _round(task, choices[key], count, measurers[text], stopped)
                choices[key] = choice
                task.database.choose(task.key, choice)
                count, done = count - spent, done + spent
                if progress is not None:
                    left_s = seconds_left(time.monotonic() - started, done, total - done)
                    best_us = choice.tuned_us if choice.tuned else None
                    progress(TuningProgress(task.name, done, total, left_s, choice.rule_us, best_us))
        before = sum(choices[key].rule_us * task.calls for key, task in tasks.items())
        after = sum(choices[key].used_us * task.calls for key, task in tasks.items())
        return Summary(choices, done, stopped(), before, after)


def _tasks(
    parts: Sequence[tuple[IRModule, Target]],
    databases: Mapping[str, Database],
    stopped: Callable[[], bool] = lambda: False,
) -> dict[str, _Task]:
    """The functions, static shapes only, until `stopped`. The same function in both parts for one target is one task,
    for two targets it is one in each database."""
    tasks: dict[str, _Task] = {}
    for mod, target in parts:
        _use_all_cores(target)
        database = databases[str(target)]
        with target:
            fused = Sequential(fusing(target))(mod)
        text = "\n".join(str(f) for f in fused.functions.values() if not isinstance(f, tirx.PrimFunc))
        for gv, func in fused.functions.items():
            tensors = arguments(func) if isinstance(func, tirx.PrimFunc) else None
            if tensors is None or stopped():
                continue
            name, key = str(gv.name_hint), key_of(func)
            calls = max(1, text.count(f"cls.{name},"))
            here = f"{database.path.name}/{key}"
            if here in tasks:
                tasks[here] = replace(tasks[here], calls=tasks[here].calls + calls)
                continue
            microseconds = 1e6 * seconds(_by_rule(func, target), tensors, repeat=5)
            tasks[here] = _Task(func, key, name, calls, database, microseconds)
    return tasks


def _by_rule(func: tirx.PrimFunc, target: Target) -> Any:
    """A function built as without tuning."""
    return built(schedule_or_default(func, machine_of(target), "a function") or func, target)


def _use_all_cores(target: Target) -> None:
    """Have TVM run on the cores that the schedules are for: by itself it takes half of an x86 machine's."""
    cores = sorted(os.sched_getaffinity(0))[: min(machine_of(target).threads, usable_cores())]
    if len(cores) > 1:
        tvm.get_global_func("runtime.config_threadpool")(_ONE_CORE_PER_THREAD, len(cores), [str(c) for c in cores])


def _round(
    task: _Task, choice: Choice, most: int, measurer: Measurer, stopped: Callable[[], bool]
) -> tuple[int, Choice]:
    """One round of at most `most` candidates: how many there were, and the choice behind it."""
    if choice.trials == 0:
        forms = list(variants(machine_of(task.target)))[:most]
        return len(forms), replace(_better(task, choice, forms), trials=len(forms))
    most = min(ROUND, most)
    tried = _searched(task, choice, most, measurer, stopped)
    if tried == 0 and stopped():
        return 0, choice
    # Where there are no more candidates, those that are missing count as tried, or it would never end.
    spent = tried if stopped() else most
    return spent, replace(_better(task, choice, [METASCHEDULE]), trials=choice.trials + spent)


def _searched(task: _Task, choice: Choice, most: int, measurer: Measurer, stopped: Callable[[], bool]) -> int:
    """How many candidates MetaSchedule tried. What it cannot schedule at all keeps what it has."""
    try:
        with interruptible():
            return search(
                module_of(task.func),
                task.target,
                task.database.records,
                measurer,
                trials=most,
                seed=choice.trials + 1,
                logs=task.database.path / "logs",
                stopped=stopped,
            )
    except OffloadError:
        raise
    except Exception:
        logger.warning("MetaSchedule fails on %s, which is not tuned by it", task.name, exc_info=True)
        return 0


def _better(task: _Task, choice: Choice, forms: Sequence[str]) -> Choice:
    """The best of the rules, the choice so far and the new forms: timed now, in turns, on the same machine."""
    tensors = arguments(task.func)
    assert tensors is not None  # or it would be no task
    by_rule = _by_rule(task.func, task.target)
    expected = _results(by_rule, task.func)
    candidates = {}
    for form in dict.fromkeys([*([choice.form] if choice.form else []), *forms]):
        made = task.database.made(task.func, form)
        function = built(made, task.target) if made is not None else None
        if function is not None and _agree(_results(function, task.func), expected):
            candidates[form] = function
    turns = [(seconds(by_rule, tensors, 5), {f: seconds(c, tensors, 5) for f, c in candidates.items()}) for _ in "1234"]
    rule_us = 1e6 * min(rule for rule, _ in turns)
    if not candidates:
        return replace(choice, rule_us=rule_us, tuned_us=None, form=None)
    times = {form: 1e6 * min(others[form] for _, others in turns) for form in candidates}
    best = min(times, key=lambda form: times[form])
    return replace(choice, rule_us=rule_us, tuned_us=times[best], form=best)


def _results(function: Any, func: tirx.PrimFunc) -> list[np.ndarray[Any, Any]]:
    """All arguments behind a call, of new tensors: in used ones an older result would pass for this one."""
    tensors = arguments(func) or []
    function(*tensors)
    return [t.numpy() for t in tensors]


def _agree(got: Sequence[np.ndarray[Any, Any]], expected: Sequence[np.ndarray[Any, Any]]) -> bool:
    """Whether a candidate computed what the rules did; where it wrote to an argument, also that is seen."""
    for one, other in zip(got, expected, strict=True):
        if other.dtype.kind == "f":
            scale = float(np.max(np.abs(other), initial=0.0, where=np.isfinite(other)))
            if not np.allclose(one, other, rtol=TOLERANCE, atol=TOLERANCE * scale, equal_nan=True):
                return False
        elif not np.array_equal(one, other):
            return False
    return True


@contextlib.contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """While it lasts, Ctrl-C is remembered instead of raised; a second one is raised. Where it is ignored, as in a job
    that a shell put into the background, it stays so."""
    asked = threading.Event()
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is signal.SIG_IGN:
        yield asked.is_set
        return

    def remember(number: int, frame: Any) -> None:
        if asked.is_set() and callable(before):
            before(number, frame)
        asked.set()

    with patiently():
        signal.signal(signal.SIGINT, remember)
        try:
            yield asked.is_set
        finally:
            signal.signal(signal.SIGINT, before)
