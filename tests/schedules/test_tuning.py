"""Tuning keeps its measurements, resumes, and builds use only schedules that are faster and right."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.relax.frontend.onnx import from_onnx

from tests.schedules.schedule_harness import HOST, TARGETS, Net, close
from zmq_offload.compile.build import build, prepared
from zmq_offload.compile.tuning import run
from zmq_offload.compile.tuning.database import METASCHEDULE, Choice, Database, key_of, module_of, variants
from zmq_offload.compile.tuning.measurer import Measurer
from zmq_offload.compile.tuning.plan import LEAST_TRIALS
from zmq_offload.compile.tuning.report import TuningProgress
from zmq_offload.errors import FailedPrecondition
from zmq_offload.schedules.machine import machine_of

OTHER = tvm.target.Target({"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mattr": ["+neon"]})


def small() -> tuple[Net, tvm.IRModule]:
    net = Net()
    y = net.op("Conv", net.input(1, 8, 12, 12), net.weight(16, 8, 3, 3), kernel_shape=[3, 3])
    return net, prepared(from_onnx(net.model(net.op("Relu", y)), keep_params_in_input=False))


def outputs(executable: Any, net: Net) -> Any:
    return relax.VirtualMachine(executable, tvm.cpu())["main"](tvm.runtime.tensor(net.inputs["x0"])).numpy()


class Pretended:
    """A MetaSchedule that finds nothing, and measurements that the test chooses."""

    def __init__(self) -> None:
        self.rounds: list[int] = []
        self.speed = 0.5
        self.interrupt_after: int | None = None

    def search(self, *_: Any, trials: int, **__: Any) -> int:
        self.rounds.append(trials)
        return trials

    def better(self, task: Any, choice: Choice, forms: list[str]) -> Choice:
        if forms != [METASCHEDULE]:
            self.rounds.append(len(forms))
        if self.interrupt_after == len(self.rounds):
            os.kill(os.getpid(), signal.SIGINT)
        return replace(choice, tuned_us=choice.rule_us * self.speed, form="half-lanes")


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Pretended:
    state = Pretended()
    monkeypatch.setattr(run, "search", state.search)
    monkeypatch.setattr(run, "_better", state.better)
    return state


@pytest.fixture
def measurer() -> Iterator[Measurer]:
    with Measurer(HOST) as process:
        yield process


# --- the loop -----------------------------------------------------------------------------------------------


def test_trials_count_once_and_survive_the_process(pretended: Pretended, tmp_path: Path) -> None:
    _, mod = small()
    seen: list[TuningProgress] = []
    first = run.tune([(mod, HOST)], tmp_path, 40, seen.append)
    assert first.trials == sum(pretended.rounds) == 40
    assert seen[0].trials == 0 and seen[0].rule_us > 0  # the rules' schedules are measured first
    assert [p.trials for p in seen] == sorted(p.trials for p in seen)
    assert seen[-1].trials == seen[-1].total_trials == 40
    assert seen[-1].seconds_left == 0.0
    again = run.tune([(mod, HOST)], tmp_path, 40)
    assert again.choices.keys() == first.choices.keys()
    assert again.trials <= LEAST_TRIALS * len(first.choices)  # shares follow new measurements; earlier trials count


def test_an_interrupt_keeps_what_was_found(pretended: Pretended, tmp_path: Path) -> None:
    _, mod = small()
    pretended.interrupt_after = 1
    stopped = run.tune([(mod, HOST)], tmp_path, 400)
    assert stopped.interrupted
    assert "interrupted" in str(stopped)
    assert len(pretended.rounds) == 1
    assert sum(c.trials for c in Database(tmp_path, HOST).choices().values()) == stopped.trials > 0
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    pretended.interrupt_after = None
    assert not run.tune([(mod, HOST)], tmp_path, 40).interrupted


def test_targets_have_databases_of_their_own(pretended: Pretended, tmp_path: Path) -> None:
    _, mod = small()
    run.tune([(mod, HOST)], tmp_path, 8)
    assert Database(tmp_path, HOST).choices()
    assert not Database(tmp_path, OTHER).choices()


def test_a_damaged_database_is_an_error_that_says_so(tmp_path: Path) -> None:
    _, mod = small()
    database = Database(tmp_path, HOST)
    with database.writing():
        pass
    (database.path / "choices.json").write_text('{"a": {"speed": 1}}')
    with pytest.raises(FailedPrecondition, match=r"choices\.json is damaged: .*; remove it"):
        build(mod, HOST, tmp_path)


@pytest.mark.parametrize(
    ("file", "content"),
    [("records.json", "[7, [[], []]]\n"), ("records.json", "{\n"), ("workloads.json", '["a", "b"]\n')],
)
def test_damaged_records_are_an_error_that_says_so(file: str, content: str, tmp_path: Path) -> None:
    task = conv_task(tmp_path)
    with task.database.writing():
        (task.database.path / file).write_text(content)
    with pytest.raises(FailedPrecondition, match=r"is damaged: .*; remove it"):
        task.database.made(task.func, METASCHEDULE)


def test_an_incomplete_line_of_a_killed_process_is_dropped(tmp_path: Path) -> None:
    task = conv_task(tmp_path)
    records = task.database.path / "records.json"
    with task.database.writing():
        records.write_text('[0, [[["SampleP')
        assert Database(tmp_path, HOST).made(task.func, METASCHEDULE) is None  # readers ignore it
    with task.database.writing():
        assert records.read_text() == ""


def test_one_process_tunes_and_others_can_read(pretended: Pretended, tmp_path: Path) -> None:
    _, mod = small()
    with Database(tmp_path, HOST).writing():
        with pytest.raises(FailedPrecondition, match="another process is tuning"):
            run.tune([(mod, HOST)], tmp_path, 8)
        build(mod, HOST, tmp_path)
    build(mod, OTHER, tmp_path)
    assert not Database(tmp_path, OTHER).path.exists(), "reading changes nothing in the folder"
    run.tune([(mod, HOST), (mod, HOST)], tmp_path, 8)  # two parts for one target are one database


def test_a_function_of_both_parts_is_found_in_both_databases(
    pretended: Pretended, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a busy machine a function's measured time may be so short beside another's that it gets no trials.
    monkeypatch.setattr(run, "share_out", lambda trials, costs: dict.fromkeys(costs, trials // len(costs)))
    _, mod = small()
    other = TARGETS[-1]
    run.tune([(mod, HOST), (mod, other)], tmp_path, 400)
    keys = [set(Database(tmp_path, target).choices()) for target in (HOST, other)]
    assert keys[0] & keys[1]
    assert all(len(key) == 32 for both in keys for key in both)


def test_trials_skipped_by_an_interrupt_are_not_counted(pretended: Pretended, monkeypatch: pytest.MonkeyPatch) -> None:
    task: Any = type("Task", (), {"name": "f", "target": HOST})()
    monkeypatch.setattr(run, "_searched", lambda *_: 3)
    choice = Choice("f", 1.0, trials=4)
    measurer: Any = None
    assert run._round(task, choice, 16, measurer, lambda: True)[0] == 3
    assert run._round(task, choice, 16, measurer, lambda: False)[0] == 16


def test_a_function_that_metaschedule_cannot_schedule_does_not_end_tuning(
    pretended: Pretended, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> int:
        raise ValueError("no such block")

    monkeypatch.setattr(run, "search", fails)
    _, mod = small()
    assert run.tune([(mod, HOST)], tmp_path, 40).trials == 40


def test_results_next_to_an_infinity_are_compared() -> None:
    expected = np.array([1.0, -np.inf], "float32")
    assert run._agree([expected], [expected])
    assert not run._agree([np.array([2.0, -np.inf], "float32")], [expected])


# --- what is kept -------------------------------------------------------------------------------------------


def conv_task(folder: Path) -> Any:
    _, mod = small()
    return next(t for t in run._tasks([(mod, HOST)], {str(HOST): Database(folder, HOST)}).values() if "conv" in t.name)


def test_a_candidate_with_other_results_is_never_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = conv_task(tmp_path)
    wrong = tvm.tirx.PrimFunc(list(task.func.params), tvm.tirx.Evaluate(0), task.func.ret_type, task.func.attrs)
    monkeypatch.setattr(Database, "made", lambda *_: wrong)
    choice = run._better(task, Choice(task.name, task.rule_us), ["half-lanes"])
    assert choice.tuned_us is None
    assert not choice.tuned


def test_variants_are_right_and_the_best_of_them_is_remembered(tmp_path: Path) -> None:
    task = conv_task(tmp_path)
    forms = list(variants(machine_of(HOST)))
    choice = run._better(task, Choice(task.name, task.rule_us), forms)
    assert choice.form in forms
    assert choice.tuned_us is not None


@pytest.mark.parametrize("speed", [0.5, 2.0])
def test_a_build_uses_a_tuned_schedule_only_if_it_is_faster(
    speed: float, pretended: Pretended, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, mod = small()
    pretended.speed = speed
    run.tune([(mod, HOST)], tmp_path, 8)
    asked: list[str] = []

    def made(self: Database, func: tvm.tirx.PrimFunc, form: str) -> tvm.tirx.PrimFunc:
        asked.append(key_of(func))
        return func  # TVM's default schedule: right, and not what the rules make

    monkeypatch.setattr(Database, "made", made)
    got = outputs(build(mod, HOST, tmp_path), net)
    assert bool(asked) == (speed < 1)
    close(got, np.asarray(outputs(tvm.compile(mod, HOST), net)))


# --- the process that measures ------------------------------------------------------------------------------


def test_a_measurer_survives_an_invalid_candidate_and_a_crash(measurer: Measurer, tmp_path: Path) -> None:
    candidate = tvm.ir.save_json(module_of(conv_task(tmp_path).func))
    assert 0 < measurer.seconds(candidate) < 1
    with pytest.raises(RuntimeError):
        measurer.seconds("no module")
    process = measurer._process
    assert process is not None
    process.kill()
    process.wait()
    with pytest.raises(RuntimeError, match="crashed"):
        measurer.seconds(candidate)
    assert 0 < measurer.seconds(candidate) < 1


def test_a_candidate_that_takes_too_long_is_an_error(tmp_path: Path) -> None:
    with Measurer(HOST, patience=0.001) as hasty, pytest.raises(RuntimeError, match="took longer"):
        hasty.seconds(tvm.ir.save_json(module_of(conv_task(tmp_path).func)))


def test_the_measuring_process_ends_by_itself_after_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import time; from zmq_offload.compile.tuning import measurer; "
        "measurer._LAST_S = 1; measurer.answer = lambda _: time.sleep(60); measurer.main()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, text=True) as process:
        process.communicate("{}\n", timeout=30)
    assert process.returncode == -signal.SIGALRM


@pytest.mark.tune
def test_metaschedule_finds_schedules_that_are_right(tmp_path: Path) -> None:
    net, mod = small()
    summary = run.tune([(mod, HOST)], tmp_path, 40)
    assert METASCHEDULE in {c.form for c in summary.choices.values()} or summary.trials == 40
    database = Database(tmp_path, HOST)
    records = (database.path / "records.json").read_text().splitlines()
    assert len(records) >= 16
    assert all(json.loads(line) for line in records)
    for key, choice in database.choices().items():
        if choice.trials > len(variants(machine_of(HOST))):
            database.choose(key, replace(choice, rule_us=1e9, tuned_us=1.0, form=METASCHEDULE))  # use the records
    close(outputs(build(mod, HOST, tmp_path), net), np.asarray(outputs(tvm.compile(mod, HOST), net)))
