"""Tune the functions of a model: the loop over rounds, and what is kept of each."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import tirx
from tvm.ir import IRModule
from tvm.ir.transform import Sequential
from tvm.target import Target

from zmq_offload.compile.schedules.machine import machine_of
from zmq_offload.compile.schedules.measure import arguments, built, seconds
from zmq_offload.compile.schedules.pipeline import fusing
from zmq_offload.compile.schedules.schedule import schedule
from zmq_offload.compile.tuning.database import METASCHEDULE, Choice, Database, key_of, module_of, variants
from zmq_offload.compile.tuning.measurer import Measurer
from zmq_offload.compile.tuning.plan import seconds_left, share_out
from zmq_offload.compile.tuning.search import search

# Candidates of one search: then what was found is kept, and it is looked at whether to stop.
ROUND = 16
_ONE_CORE_PER_THREAD = -2  # tvm::runtime::threading::ThreadGroup::kSpecifyOneCorePerThread
# Of a candidate's result from the rules', relative to the largest value: sums in another order differ by less.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Progress:
    """How far tuning is; times in microseconds, `seconds_left` None until something was measured."""

    function: str
    trials: int
    total_trials: int
    seconds_left: float | None
    rule_us: float
    best_us: float | None

    def __str__(self) -> str:
        left = "" if self.seconds_left is None else f", about {_duration(self.seconds_left)} left"
        best = "none better" if self.best_us is None else f"{self.best_us:,.0f} us"
        function = self.function if len(self.function) <= 40 else f"{self.function[:37]}..."
        return f"{self.trials}/{self.total_trials}{left}; {function}: {self.rule_us:,.0f} us by rule, {best}"


@dataclass(frozen=True)
class Summary:
    """What one run of tuning did: the choices for the model's functions, and their times over a whole run of it."""

    choices: dict[str, Choice]
    trials: int
    interrupted: bool
    rule_us: float
    best_us: float

    def __str__(self) -> str:
        if not self.choices:
            return "no function has a fixed shape, there is nothing to tune"
        faster = sum(choice.tuned for choice in self.choices.values())
        end = ", interrupted" if self.interrupted else ""
        return (
            f"{faster} of {len(self.choices)} functions are faster than by rule, their sum {self.rule_us / 1e3:.2f} -> "
            f"{self.best_us / 1e3:.2f} ms; {self.trials} trials{end}"
        )


def _duration(seconds_: float) -> str:
    minutes, rest = divmod(round(seconds_), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


@dataclass(frozen=True, eq=False)
class _Task:
    """A function to tune, the times it is called in a run of the model, and how long it takes by the rules."""

    func: tirx.PrimFunc
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
    progress: Callable[[Progress], None] | None = None,
) -> Summary:
    """Spend `trials` on the functions of modules for this machine's CPU, shared out by how long they take.

    What was tried before, for the same function and target, counts: tuning again with as many trials does nothing, with
    more goes on. Ctrl-C ends it within a few seconds, with everything found so far kept; the second one is raised.

    Raises FailedPrecondition for a folder that cannot be written or is damaged.
    """
    tasks = _tasks(parts, folder)
    plan = share_out(trials, {key: task.rule_us * task.calls for key, task in tasks.items()})
    known = {key: task.database.choices().get(key) for key, task in tasks.items()}
    choices = {key: known[key] or Choice(task.name, task.rule_us) for key, task in tasks.items()}
    left = {key: max(0, count - choices[key].trials) for key, count in plan.items()}
    total, done, started = sum(left.values()), 0, time.monotonic()
    with _interruptible() as stopped, contextlib.ExitStack() as stack:
        measurers: dict[str, Measurer] = {}
        for key, count in left.items():
            task = tasks[key]
            text = str(task.target)
            if text not in measurers:
                measurers[text] = stack.enter_context(Measurer(task.target))
            while count > 0 and not stopped():
                spent, choice = _round(task, choices[key], count, measurers[text], stopped)
                choices[key] = choice
                task.database.choose(key, choice)
                count, done = count - spent, done + spent
                if progress is not None:
                    left_s = seconds_left(time.monotonic() - started, done, total - done)
                    progress(Progress(task.name, done, total, left_s, choice.rule_us, choice.tuned_us))
        before = sum(choices[key].rule_us * task.calls for key, task in tasks.items())
        after = sum(choices[key].used_us * task.calls for key, task in tasks.items())
        return Summary(choices, done, stopped(), before, after)


def _tasks(parts: Sequence[tuple[IRModule, Target]], folder: Path) -> dict[str, _Task]:
    """The functions by their keys, static shapes only. The same function in both parts is one task."""
    tasks: dict[str, _Task] = {}
    for mod, target in parts:
        _use_all_cores(target)
        database, machine = Database(folder, target), machine_of(target)
        with target:
            fused = Sequential(fusing(target))(mod)
        text = "\n".join(str(f) for f in fused.functions.values() if not isinstance(f, tirx.PrimFunc))
        for gv, func in fused.functions.items():
            tensors = arguments(func) if isinstance(func, tirx.PrimFunc) else None
            if tensors is None:
                continue
            name, key = str(gv.name_hint), key_of(func)
            calls = max(1, text.count(f"cls.{name},"))
            if key in tasks and str(tasks[key].target) == str(target):
                tasks[key] = replace(tasks[key], calls=tasks[key].calls + calls)
                continue
            microseconds = 1e6 * seconds(built(schedule(func, machine) or func, target), tensors, repeat=5)
            # Two targets have databases of their own, and so the function is a task for each.
            key = key if key not in tasks else f"{key}-{database.path.name}"
            tasks[key] = _Task(func, name, calls, database, microseconds)
    return tasks


def _use_all_cores(target: Target) -> None:
    """Have TVM run on the cores that the schedules are for: by itself it takes half of an x86 machine's."""
    cores = sorted(os.sched_getaffinity(0))[: machine_of(target).threads]
    if len(cores) > 1:
        tvm.get_global_func("runtime.config_threadpool")(_ONE_CORE_PER_THREAD, len(cores), [str(c) for c in cores])


def _round(
    task: _Task, choice: Choice, most: int, measurer: Measurer, stopped: Callable[[], bool]
) -> tuple[int, Choice]:
    """One round of at most `most` candidates: how many there were, and the choice behind it."""
    if choice.trials == 0:
        forms = list(variants(machine_of(task.target)))[:most]
    else:
        forms = [METASCHEDULE]
        most = min(ROUND, most)
        search(
            module_of(task.func),
            task.target,
            task.database.records,
            measurer,
            trials=most,
            seed=choice.trials + 1,
            logs=task.database.path / "logs",
            stopped=stopped,
        )
    spent = len(forms) if choice.trials == 0 else most
    return spent, replace(_better(task, choice, forms), trials=choice.trials + spent)


def _better(task: _Task, choice: Choice, forms: Sequence[str]) -> Choice:
    """The best of the rules, the choice so far and the new forms: timed now, in turns, on the same machine."""
    tensors = arguments(task.func)
    assert tensors is not None  # or it would be no task
    by_rule = built(schedule(task.func, machine_of(task.target)) or task.func, task.target)
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
        return replace(choice, rule_us=rule_us)
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
            scale = float(np.nanmax(np.abs(other), initial=0.0))
            if not np.allclose(one, other, rtol=TOLERANCE, atol=TOLERANCE * scale, equal_nan=True):
                return False
        elif not np.array_equal(one, other):
            return False
    return True


@contextlib.contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """While it lasts, Ctrl-C is remembered instead of raised; a second one is raised."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = signal.getsignal(signal.SIGINT)

    def remember(number: int, frame: Any) -> None:
        if asked.is_set() and callable(before):
            before(number, frame)
        asked.set()

    signal.signal(signal.SIGINT, remember)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)
