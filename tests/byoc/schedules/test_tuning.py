"""Tuning keeps what it measures, goes on where it stopped, and only what is faster is used."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.relax.frontend.onnx import from_onnx

from tests.byoc.schedules.schedule_harness import HOST, Net, close
from zmq_offload.compile import tuning
from zmq_offload.compile.schedules import cpu_pipeline


def small() -> tuple[Net, tvm.IRModule]:
    net = Net()
    y = net.op("Conv", net.input(1, 8, 12, 12), net.weight(16, 8, 3, 3), kernel_shape=[3, 3])
    return net, from_onnx(net.model(net.op("Relu", y)), keep_params_in_input=False)


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """MetaSchedule replaced by a stub whose candidates take as long as the test says."""
    state: dict[str, Any] = {"rounds": [], "speed": 0.5, "interrupt_after": None}

    def one_round(func: Any, target: Any, database: Any, trials: int, seed: int) -> None:
        state["rounds"].append(trials)
        if state["interrupt_after"] == len(state["rounds"]):
            os.kill(os.getpid(), signal.SIGINT)

    def measured(func: Any, target: Any, database: Any, choice: tuning.Choice, spent: int) -> tuning.Choice:
        return tuning.Choice(choice.name, choice.rule_us, choice.rule_us * state["speed"], choice.trials + spent)

    monkeypatch.setattr(tuning, "_round", one_round)
    monkeypatch.setattr(tuning, "_measured", measured)
    return state


def test_trials_count_once_and_survive_the_process(pretended: dict[str, Any], tmp_path: Path) -> None:
    _, mod = small()
    seen: list[tuning.Progress] = []
    first = tuning.tune(mod, HOST, tmp_path, 40, seen.append)
    assert first.trials == sum(pretended["rounds"]) >= 40
    assert [p.trials for p in seen] == sorted(p.trials for p in seen)
    assert seen[-1].trials == seen[-1].total_trials
    assert seen[-1].seconds_left == pytest.approx(0.0)
    pretended["rounds"].clear()
    again = tuning.tune(mod, HOST, tmp_path, 40)
    assert again.choices.keys() == first.choices.keys()
    assert again.trials <= 8 * len(first.choices)  # the shares follow new measurements, the trials done still count


def test_an_interrupt_ends_the_round_and_keeps_what_was_found(pretended: dict[str, Any], tmp_path: Path) -> None:
    _, mod = small()
    pretended["interrupt_after"] = 1
    stopped = tuning.tune(mod, HOST, tmp_path, 400)
    assert stopped.interrupted
    assert len(pretended["rounds"]) == 1
    assert sum(c.trials for c in tuning.Database(tmp_path, HOST).choices().values()) == stopped.trials
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    pretended["interrupt_after"] = None
    assert not tuning.tune(mod, HOST, tmp_path, 40).interrupted


def test_targets_have_databases_of_their_own(pretended: dict[str, Any], tmp_path: Path) -> None:
    _, mod = small()
    tuning.tune(mod, HOST, tmp_path, 8)
    other = tvm.target.Target({"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mattr": ["+neon"]})
    assert tuning.Database(tmp_path, HOST).choices()
    assert not tuning.Database(tmp_path, other).choices()


@pytest.mark.parametrize(("speed", "used"), [(0.5, True), (2.0, False)])
def test_a_build_uses_what_is_faster(
    speed: float, used: bool, pretended: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, mod = small()
    pretended["speed"] = speed
    tuning.tune(mod, HOST, tmp_path, 8)
    asked: list[str] = []

    def tuned(self: tuning.Database, func: tvm.tirx.PrimFunc) -> tvm.tirx.PrimFunc:
        asked.append(tuning.key_of(func))
        return func  # TVM's default schedule: right, and not what the rules make

    monkeypatch.setattr(tuning.Database, "tuned", tuned)
    executable = tvm.compile(mod, HOST, relax_pipeline=cpu_pipeline(HOST, tmp_path))
    assert bool(asked) == used
    got = relax.VirtualMachine(executable, tvm.cpu())["main"](tvm.runtime.tensor(net.inputs["x0"])).numpy()
    plain = relax.VirtualMachine(tvm.compile(mod, HOST), tvm.cpu())
    close(got, np.asarray(plain["main"](tvm.runtime.tensor(net.inputs["x0"])).numpy()))


@pytest.mark.tune
def test_metaschedule_runs_and_its_result_is_right(tmp_path: Path) -> None:
    net, mod = small()
    summary = tuning.tune(mod, HOST, tmp_path, 8)
    assert any(c.tuned_us is not None for c in summary.choices.values())
    database = tuning.Database(tmp_path, HOST)
    for key, choice in database.choices().items():
        database.choose(key, tuning.Choice(choice.name, 1e9, choice.tuned_us, choice.trials))  # use all that exist
    executable = tvm.compile(mod, HOST, relax_pipeline=cpu_pipeline(HOST, tmp_path))
    got = relax.VirtualMachine(executable, tvm.cpu())["main"](tvm.runtime.tensor(net.inputs["x0"])).numpy()
    plain = relax.VirtualMachine(tvm.compile(mod, HOST), tvm.cpu())
    close(got, np.asarray(plain["main"](tvm.runtime.tensor(net.inputs["x0"])).numpy()))
