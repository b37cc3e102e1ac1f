"""Tuning results in a folder: one database for each target, which only grows.

In a target's folder `choices.json` has for each function the time with the rules' schedule, the best candidate and
its time. MetaSchedule's own records are next to it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tvm import tirx
from tvm.ir import IRModule
from tvm.target import Target

from zmq_offload.common.extras import needs
from zmq_offload.errors import FailedPrecondition
from zmq_offload.schedules.machine import Machine, machine_of
from zmq_offload.schedules.schedule import schedule

if TYPE_CHECKING:  # takes as long to import as all the rest
    from tvm.s_tir import meta_schedule as ms

logger = logging.getLogger(__name__)

METASCHEDULE = "metaschedule"
_WORKLOADS, _RECORDS = "workloads.json", "records.json"
# A candidate is used if it is faster by more than the noise between two measurements of the same code.
LEAST_GAIN = 0.03


@dataclass(frozen=True)
class Choice:
    """The results for a function on a target. Times are in microseconds.

    `form` is the origin of the best candidate: METASCHEDULE or a name from `variants`; None while there is none.
    """

    name: str
    rule_us: float
    tuned_us: float | None = None
    form: str | None = None
    trials: int = 0

    @property
    def tuned(self) -> bool:
        """Whether the best candidate is faster than the rules' schedule."""
        return self.tuned_us is not None and self.tuned_us < self.rule_us * (1 - LEAST_GAIN)

    @property
    def used_us(self) -> float:
        """The time of the schedule that a build uses."""
        return self.tuned_us if self.tuned and self.tuned_us is not None else self.rule_us


def variants(machine: Machine) -> dict[str, Machine]:
    """Candidates without a search: the rules with changed parameters.

    Narrower vectors waste less on odd sizes, fewer registers leave some to the compiler, and more tasks than cores
    balance unequal work.
    """
    return {
        "half-lanes": replace(machine, lanes=max(1, machine.lanes // 2)),
        "half-registers": replace(machine, registers=machine.registers // 2),
        "three-quarters-registers": replace(machine, registers=machine.registers * 3 // 4),
        "double-tasks": replace(machine, threads=machine.threads * 2),
    }


class Database:
    """The results for one target in a folder. The folder may be read-only, except for `writing`.

    Methods raise FailedPrecondition for a file that cannot be used.
    """

    def __init__(self, folder: Path, target: Target) -> None:
        self.target = target
        self._text = json.dumps(json.loads(str(target)), sort_keys=True)
        name = f"{target.attrs.get('mcpu', 'generic')}-{hashlib.sha256(self._text.encode()).hexdigest()[:12]}"
        self.path = folder / name
        self._choices = self.path / "choices.json"
        self._records: ms.database.JSONDatabase | None = None
        self._writing = False

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Lock the database for writing. Raises FailedPrecondition while another process writes.

        MetaSchedule's records refer to workloads by line number, which would be wrong if two processes added lines.
        """
        with contextlib.ExitStack() as stack:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                lock = stack.enter_context((self.path / "lock").open("a"))
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                (self.path / "target.json").write_text(self._text + "\n")
                for name in (_WORKLOADS, _RECORDS):
                    _drop_incomplete_line(self.path / name)
            except BlockingIOError:
                raise FailedPrecondition(f"another process is tuning with {self.path}; wait until it ends") from None
            except OSError as error:
                raise FailedPrecondition(f"{self.path} cannot be written: {error.strerror or error}") from None
            self._records, self._writing = None, True
            try:
                yield
            finally:
                self._records, self._writing = None, False

    @property
    def records(self) -> ms.database.JSONDatabase:
        """MetaSchedule's database, opened on first use, because MetaSchedule is slow to import."""
        if self._records is None:
            with needs("tune"):
                from tvm.s_tir import meta_schedule as ms
            with contextlib.ExitStack() as stack:
                folder = self.path
                if not self._writing:  # read a copy: another process may be writing, or the folder may be read-only
                    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="zmq-offload-")))
                    self._copy(folder)
                try:
                    self._records = ms.database.JSONDatabase(
                        str(folder / _WORKLOADS), str(folder / _RECORDS), module_equality="structural"
                    )
                except Exception as error:
                    why = " ".join(str(error).split())[:300]
                    raise FailedPrecondition(f"{self.path} is damaged: {why}; remove it to start over") from None
        return self._records

    def _copy(self, folder: Path) -> None:
        try:
            for name in (_RECORDS, _WORKLOADS):  # in this order: a workload is written before its records
                whole, newline, _ = _read(self.path / name).rpartition(b"\n")
                (folder / name).write_bytes(whole + newline)
        except OSError as error:
            raise FailedPrecondition(f"{self.path} cannot be read: {error.strerror or error}") from None

    def choices(self) -> dict[str, Choice]:
        """The choices by function key."""
        if not self._choices.exists():
            return {}
        try:
            return {key: Choice(**value) for key, value in json.loads(self._choices.read_text()).items()}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise FailedPrecondition(f"{self._choices} is damaged: {error}; remove it to start over") from None

    def choose(self, key: str, choice: Choice) -> None:
        """Add a choice. The file is replaced atomically."""
        merged = {**self.choices(), key: choice}
        fresh = self._choices.with_suffix(".new")
        try:
            fresh.write_text(json.dumps({k: asdict(c) for k, c in merged.items()}, indent=1, sort_keys=True) + "\n")
            os.replace(fresh, self._choices)
        except OSError as error:
            raise FailedPrecondition(f"{self._choices} cannot be written: {error.strerror or error}") from None

    def made(self, func: tirx.PrimFunc, form: str) -> tirx.PrimFunc | None:
        """`func` in the form of a choice; None if it is not available."""
        machine = machine_of(self.target)
        if form == METASCHEDULE:
            records = self.records
            try:
                found = records.query_ir_module(module_of(func), self.target, "main")
            except Exception:  # a record of another TVM version, whose steps do not apply
                logger.warning(
                    "a tuned schedule in %s cannot be used; the rules' schedule is used", self.path, exc_info=True
                )
                return None
            if found is None:
                return None
            best = found["main"]
            return tirx.PrimFunc(list(best.params), best.body, best.ret_type, func.attrs)
        variant = variants(machine).get(form)
        return schedule(func, variant) if variant is not None else None


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return b""


def _drop_incomplete_line(file: Path) -> None:
    """Truncate an incomplete last line, which a killed process may leave."""
    content = _read(file)
    if content and not content.endswith(b"\n"):
        os.truncate(file, content.rfind(b"\n") + 1)


def module_of(func: tirx.PrimFunc) -> IRModule:
    """A module with the function as its `main`, as MetaSchedule expects."""
    return IRModule({"main": func.with_attr("global_symbol", "main")})


def key_of(func: tirx.PrimFunc) -> str:
    """A key for what a function computes, the same in every process."""
    return hashlib.sha256(module_of(func).script(show_meta=True).encode()).hexdigest()[:32]


def tuned_or_none(folder: Path, target: Target) -> Callable[[tirx.PrimFunc], tirx.PrimFunc | None]:
    """A rule for the scheduler: the tuned form of a function, if it was faster than the rules' schedule."""
    database = Database(folder, target)
    choices = database.choices()

    def rule(func: tirx.PrimFunc) -> tirx.PrimFunc | None:
        choice = choices.get(key_of(func)) if choices else None
        if choice is None or not choice.tuned or choice.form is None:
            return None
        return database.made(func, choice.form)

    return rule
