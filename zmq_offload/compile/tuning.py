"""MetaSchedule on top of the rules: what it finds is kept in a folder, and used where it was measured to be faster.

A folder holds one database for each target; within it MetaSchedule's records and `choices.json`, which says for each
function how long it takes by rule and as tuned. Both only grow, so tuning may be stopped and taken up again.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tvm import tirx
from tvm.ir import IRModule
from tvm.ir.transform import Sequential
from tvm.s_tir import meta_schedule as ms
from tvm.target import Target

from zmq_offload.compile.schedules.machine import machine_of
from zmq_offload.compile.schedules.measure import arguments, built, seconds
from zmq_offload.compile.schedules.pipeline import fusing
from zmq_offload.compile.schedules.schedule import schedule

# Candidates measured between two looks at whether to stop; each round starts from what the database holds.
ROUND = 16
# Functions with a smaller part of the time than this are not worth trials.
LEAST_SHARE = 0.01


@dataclass(frozen=True)
class Progress:
    """How far tuning is."""

    function: str
    trials: int
    total_trials: int
    seconds_left: float | None  # None until something was measured
    rule_us: float
    best_us: float | None


@dataclass(frozen=True)
class Choice:
    """What is known of a function on a target."""

    name: str
    rule_us: float
    tuned_us: float | None = None
    trials: int = 0

    @property
    def tuned(self) -> bool:
        """Whether the tuned schedule is the faster one."""
        return self.tuned_us is not None and self.tuned_us < self.rule_us


@dataclass(frozen=True)
class Summary:
    """What one run of tuning did."""

    choices: dict[str, Choice]
    trials: int
    interrupted: bool


class Database:
    """The records for one target in a folder."""

    def __init__(self, folder: Path, target: Target) -> None:
        self.target = target
        text = json.dumps(json.loads(str(target)), sort_keys=True)
        name = f"{target.attrs.get('mcpu', 'generic')}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        self.path = folder / name
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "target.json").write_text(text + "\n")
        self._choices = self.path / "choices.json"
        self._records: Any = None

    @property
    def records(self) -> Any:
        """MetaSchedule's database, opened when first needed."""
        if self._records is None:
            self._records = ms.database.JSONDatabase(
                str(self.path / "workloads.json"), str(self.path / "records.json"), module_equality="structural"
            )
        return self._records

    def choices(self) -> dict[str, Choice]:
        """What was measured, by the function's key."""
        if not self._choices.exists():
            return {}
        return {key: Choice(**value) for key, value in json.loads(self._choices.read_text()).items()}

    def choose(self, key: str, choice: Choice) -> None:
        """Add a choice; the file is replaced in one step, so that stopping never leaves half of it."""
        merged = {**self.choices(), key: choice}
        fresh = self._choices.with_suffix(".new")
        fresh.write_text(json.dumps({k: asdict(c) for k, c in merged.items()}, indent=1, sort_keys=True) + "\n")
        os.replace(fresh, self._choices)

    def tuned(self, func: tirx.PrimFunc) -> tirx.PrimFunc | None:
        """The best tuned form of a function, None if there is none."""
        found = self.records.query_ir_module(_module(func), self.target, "main")
        if found is None:
            return None
        best = found["main"]
        return tirx.PrimFunc(list(best.params), best.body, best.ret_type, func.attrs)


def _module(func: tirx.PrimFunc) -> IRModule:
    return IRModule({"main": func.with_attr("global_symbol", "main")})


def key_of(func: tirx.PrimFunc) -> str:
    """A name for what a function computes that is the same in every process."""
    return hashlib.sha256(_module(func).script(show_meta=True).encode()).hexdigest()[:32]


def tuned_or_none(folder: Path, target: Target) -> Callable[[tirx.PrimFunc], tirx.PrimFunc | None]:
    """A rule for the scheduler: the tuned form of a function where that was measured to be the faster one."""
    database = Database(folder, target)
    choices = database.choices()

    def rule(func: tirx.PrimFunc) -> tirx.PrimFunc | None:
        choice = choices.get(key_of(func)) if choices else None
        return database.tuned(func) if choice is not None and choice.tuned else None

    return rule


def tune(
    mod: IRModule, target: Target, folder: Path, trials: int, progress: Callable[[Progress], None] | None = None
) -> Summary:
    """Spend `trials` on the functions of `mod`, shared out by how long they take; what was tried before counts.

    Ctrl-C ends it after the round under way, with everything found so far kept.
    """
    database = Database(folder, target)
    with target:
        fused = Sequential(fusing(target))(mod)
    tasks = _tasks(fused, target)
    total = sum(weight for _, _, weight in tasks.values()) or 1.0
    known = database.choices()
    shares = {k: w / total for k, (_, _, w) in tasks.items() if w / total >= LEAST_SHARE}
    plan = {k: max(ROUND // 2, round(trials * share / sum(shares.values()))) for k, share in shares.items()}
    left = {k: max(0, count - (known[k].trials if k in known else 0)) for k, count in plan.items()}
    done, started, everything = 0, time.monotonic(), sum(left.values())
    with _interruptible() as stopped:
        for key, count in sorted(left.items(), key=lambda item: -shares[item[0]]):
            func, rule_us, _ = tasks[key]
            choice = known.get(key, Choice(str(func.attrs.get("zmq_offload.name", key)), rule_us))
            while count > 0 and not stopped():
                spent = min(ROUND, count)
                _round(func, target, database, spent, seed=choice.trials + 1)
                choice = _measured(func, target, database, choice, spent)
                database.choose(key, choice)
                count, done = count - spent, done + spent
                if progress is not None:
                    remaining = (time.monotonic() - started) / done * (everything - done)
                    best = choice.tuned_us
                    progress(Progress(choice.name, done, everything, remaining, choice.rule_us, best))
        return Summary(database.choices(), done, stopped())


def _tasks(fused: IRModule, target: Target) -> dict[str, tuple[tirx.PrimFunc, float, float]]:
    """(function, microseconds by rule, the same times how often it is called) by key; static shapes only."""
    machine = machine_of(target)
    calls: dict[str, int] = {}
    text = "\n".join(str(f) for f in fused.functions.values() if not isinstance(f, tirx.PrimFunc))
    tasks = {}
    for name, func in fused.functions.items():
        if not isinstance(func, tirx.PrimFunc):
            continue
        tensors = arguments(func)
        if tensors is None:
            continue
        hint = str(name.name_hint)
        calls[hint] = max(1, text.count(f"cls.{hint},"))
        by_rule = schedule(func, machine) or func
        microseconds = 1e6 * seconds(built(by_rule, target), tensors, repeat=5)
        tasks[key_of(func)] = (func.with_attr("zmq_offload.name", hint), microseconds, microseconds * calls[hint])
    return tasks


def _round(func: tirx.PrimFunc, target: Target, database: Database, trials: int, seed: int) -> None:
    """Let MetaSchedule try `trials` candidates; they land in the database."""
    noise = logging.getLogger("tvm.s_tir.meta_schedule")
    level = noise.level
    noise.setLevel(logging.WARNING)  # it prints a page of tables for every round; its files in `logs` have them too
    try:
        ms.tune_tir(
            _module(func.without_attr("zmq_offload.name")),
            target,
            work_dir=str(database.path / "logs"),
            max_trials_global=trials,
            num_trials_per_iter=trials,
            database=database.records,
            # Its learned cost model needs xgboost; a random one still measures what it draws.
            cost_model="xgb" if importlib.util.find_spec("xgboost") else "random",
            num_tuning_cores="logical",
            seed=seed,
        )
    finally:
        noise.setLevel(level)


def _measured(func: tirx.PrimFunc, target: Target, database: Database, choice: Choice, spent: int) -> Choice:
    """The choice after a round: both forms timed now, in turns, on the same machine."""
    plain = func.without_attr("zmq_offload.name")
    tuned, by_rule = database.tuned(plain), schedule(plain, machine_of(target)) or plain
    trials = choice.trials + spent
    tensors = arguments(plain)
    if tuned is None or tensors is None:
        return Choice(choice.name, choice.rule_us, choice.tuned_us, trials)
    one, other = built(by_rule, target), built(tuned, target)
    times = [(seconds(one, tensors, 5), seconds(other, tensors, 5)) for _ in range(4)]
    return Choice(choice.name, 1e6 * min(t[0] for t in times), 1e6 * min(t[1] for t in times), trials)


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
