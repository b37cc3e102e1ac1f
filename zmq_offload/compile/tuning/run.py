"""Tune the functions of a model: spend trials in rounds, and keep the fastest schedule after each."""

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
from types import FrameType

import numpy as np
import tvm
from tvm import tirx
from tvm.ir import IRModule
from tvm.ir.transform import Sequential
from tvm.target import Target

from zmq_offload.common.cores import usable_cores
from zmq_offload.compile.interrupt import handling_first_interrupt, interruptible
from zmq_offload.compile.pipeline import fusing
from zmq_offload.compile.tuning.database import METASCHEDULE, Choice, Database, key_of, module_of, variants
from zmq_offload.compile.tuning.measurer import Measurer
from zmq_offload.compile.tuning.plan import seconds_left, share_out
from zmq_offload.compile.tuning.report import Summary, TuningProgress
from zmq_offload.compile.tuning.search import search
from zmq_offload.errors import OffloadError
from zmq_offload.protocol.payload import Array
from zmq_offload.runtime.threads import bind_pool
from zmq_offload.schedules.machine import machine_of
from zmq_offload.schedules.measure import arguments, built, seconds
from zmq_offload.schedules.schedule import schedule_or_default
from zmq_offload.schedules.tvm_internals import SCHEDULED

logger = logging.getLogger(__name__)

# Candidates of one search. After each the results are kept, and an interruption takes effect.
ROUND = 16
# Relative to the largest value. A sum in another order differs by less.
TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class _Task:
    """A function to tune, the number of calls in one run of the model, and its time with the rules' schedule."""

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
    modules: Sequence[tuple[IRModule, Target]],
    folder: Path,
    trials: int,
    progress: Callable[[TuningProgress], None] = lambda _: None,
) -> Summary:
    """Spend `trials` on the functions of modules for this machine's CPU, in proportion to the time that each takes.

    Earlier trials for the same function and target count: the same number of trials again does nothing, and a larger
    number continues. The first Ctrl-C stops tuning within a few seconds and keeps the results; the second is raised.

    Raises FailedPrecondition for a folder that cannot be written, is damaged, or is in use by another process.
    """
    databases = {str(target): Database(folder, target) for _, target in modules}
    with contextlib.ExitStack() as stack:
        stopped = stack.enter_context(_recorded_interrupt())
        for database in databases.values():
            stack.enter_context(database.writing())
        tasks = _tasks(
            modules,
            databases,
            stopped,
            lambda name, rule_us: progress(TuningProgress(name, 0, trials, None, rule_us, None)),
        )
        return _tune(tasks, trials, stopped, progress)


def _tune(
    tasks: dict[str, _Task], trials: int, stopped: Callable[[], bool], progress: Callable[[TuningProgress], None]
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
                left_s = seconds_left(time.monotonic() - started, done, total - done)
                best_us = choice.tuned_us if choice.tuned else None
                progress(TuningProgress(task.name, done, total, left_s, choice.rule_us, best_us))
        before = sum(choices[key].rule_us * task.calls for key, task in tasks.items())
        after = sum(choices[key].used_us * task.calls for key, task in tasks.items())
        return Summary(choices, done, stopped(), before, after)


def _tasks(
    modules: Sequence[tuple[IRModule, Target]],
    databases: Mapping[str, Database],
    stopped: Callable[[], bool] = lambda: False,
    report: Callable[[str, float], None] = lambda name, rule_us: None,
) -> dict[str, _Task]:
    """The functions with static shapes, found until `stopped`. A function that several modules have for the same target
    is one task; for two targets it is a task in each database. `report` gets the name and the time of each."""
    tasks: dict[str, _Task] = {}
    for mod, target in modules:
        _use_all_cores(target)
        database = databases[str(target)]
        with target:
            fused = Sequential(fusing(target))(mod)
        text = "\n".join(str(f) for f in fused.functions.values() if not isinstance(f, tirx.PrimFunc))
        for gv, func in fused.functions.items():
            # A function that is scheduled already, such as a recurrent network's, is not for tuning.
            tunable = isinstance(func, tirx.PrimFunc) and not func.attrs.get(SCHEDULED, False)
            tensors = arguments(func) if tunable else None
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
            report(name, microseconds)
    return tasks


def _by_rule(func: tirx.PrimFunc, target: Target) -> tvm.ffi.Function:
    """Build a function as it is built without tuning."""
    return built(schedule_or_default(func, machine_of(target), "a function") or func, target)


def _use_all_cores(target: Target) -> None:
    """Have TVM run on the cores that the schedules are for. By default it takes half of an x86 machine's cores."""
    cores = sorted(os.sched_getaffinity(0))[: min(machine_of(target).threads, usable_cores())]
    bind_pool(len(cores), cores)


def _round(
    task: _Task, choice: Choice, most: int, measurer: Measurer, stopped: Callable[[], bool]
) -> tuple[int, Choice]:
    """Run one round of at most `most` candidates. Returns how many there were, and the choice after it."""
    if choice.trials == 0:
        forms = list(variants(machine_of(task.target)))[:most]
        return len(forms), replace(_better(task, choice, forms), trials=len(forms))
    most = min(ROUND, most)
    tried = _searched(task, choice, most, measurer, stopped)
    if tried == 0 and stopped():
        return 0, choice
    # If there are no more candidates, missing ones count as tried. Otherwise tuning would never end.
    spent = tried if stopped() else most
    return spent, replace(_better(task, choice, [METASCHEDULE]), trials=choice.trials + spent)


def _searched(task: _Task, choice: Choice, most: int, measurer: Measurer, stopped: Callable[[], bool]) -> int:
    """Search with MetaSchedule and return the number of candidates tried: 0 for a function that it cannot schedule."""
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
        logger.warning("MetaSchedule fails on %s; it is not tuned further", task.name, exc_info=True)
        return 0


def _better(task: _Task, choice: Choice, forms: Sequence[str]) -> Choice:
    """The fastest of the rules' schedule, the choice so far and the new forms, timed now and in turns."""
    tensors = arguments(task.func)
    assert tensors is not None  # every task has static shapes
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


def _results(function: tvm.ffi.Function, func: tirx.PrimFunc) -> list[Array]:
    """All arguments after a call. The tensors are new: used ones could hold an older result."""
    tensors = arguments(func) or []
    function(*tensors)
    return [t.numpy() for t in tensors]


def _agree(got: Sequence[Array], expected: Sequence[Array]) -> bool:
    """Whether a candidate computed the same as the rules' schedule, and left its inputs unchanged."""
    for one, other in zip(got, expected, strict=True):
        if other.dtype.kind == "f":
            scale = float(np.max(np.abs(other), initial=0.0, where=np.isfinite(other)))
            if not np.allclose(one, other, rtol=TOLERANCE, atol=TOLERANCE * scale, equal_nan=True):
                return False
        elif not np.array_equal(one, other):
            return False
    return True


@contextlib.contextmanager
def _recorded_interrupt() -> Iterator[Callable[[], bool]]:
    """Record the first Ctrl-C in the body instead of raising it; the second is raised.

    Where Ctrl-C is ignored, as in a background job of a shell, it stays ignored.
    """
    asked = threading.Event()
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is signal.SIG_IGN:
        yield asked.is_set
        return

    def remember(number: int, frame: FrameType | None) -> None:
        if asked.is_set() and callable(before):
            before(number, frame)
        asked.set()

    with handling_first_interrupt():
        signal.signal(signal.SIGINT, remember)
        try:
            yield asked.is_set
        finally:
            signal.signal(signal.SIGINT, before)
