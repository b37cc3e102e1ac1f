"""What a version is run on before it is announced, and how."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from tests.support.processes import eventually, running_broker, running_workers
from workers.aside import run_aside
from workers.executor import GraphExecutor
from workers.warmup import usual_inputs, wanted_inputs
from zmq_offload import Client
from zmq_offload.artifacts.config import WarmUp
from zmq_offload.artifacts.repository import ModelVersion, Repository
from zmq_offload.compile import Compiled
from zmq_offload.errors import FailedPrecondition
from zmq_offload.protocol.tensors import ANY, TensorSpec

OUTPUTS = (TensorSpec("y", "FP32", (1,)),)


def version(*inputs: TensorSpec) -> ModelVersion:
    return ModelVersion("m", 1, inputs, OUTPUTS, "llvm", "0", "sha256:0")


FLOATS = version(TensorSpec("x", "FP32", (ANY, 3)))


def test_without_a_configuration_floats_are_ones_and_integers_are_not_run() -> None:
    ((x,),) = (usual_inputs(FLOATS) or [],)
    np.testing.assert_array_equal(x, np.ones((1, 3), "f4"))
    assert usual_inputs(version(TensorSpec("x", "INT32", (3,)))) is None
    assert usual_inputs(version(TensorSpec("x", "FP32", (1, ANY)))) is None


@pytest.mark.parametrize("kind", ["ones", "zeros", "random"])
def test_made_inputs_fit_the_signature(kind: str, tmp_path: Path) -> None:
    model = version(TensorSpec("x", "FP32", (ANY, 3)), TensorSpec("n", "INT64", (ANY,)))
    x, n = wanted_inputs(model, WarmUp(inputs=kind), tmp_path)
    assert (x.shape, x.dtype, n.shape, n.dtype) == ((1, 3), "f4", (1,), "i8")
    assert {"ones": x.min() == 1, "zeros": x.max() == 0, "random": 0 < x.min() < x.max() < 1}[kind]


def test_an_extent_that_is_not_known_needs_a_file(tmp_path: Path) -> None:
    model = version(TensorSpec("x", "FP32", (1, ANY)))
    with pytest.raises(FailedPrecondition, match="extent that is not known; give the inputs by a file"):
        wanted_inputs(model, WarmUp(inputs="zeros"), tmp_path)
    np.savez(tmp_path / "some.npz", x=np.full((1, 5), 7, "f4"))
    (x,) = wanted_inputs(model, WarmUp(inputs="some.npz"), tmp_path)
    np.testing.assert_array_equal(x, np.full((1, 5), 7, "f4"))


def test_files_that_do_not_fit_are_named(tmp_path: Path) -> None:
    wanted = WarmUp(inputs="some.npz")
    with pytest.raises(FailedPrecondition, match=r"some\.npz cannot be read"):
        wanted_inputs(FLOATS, wanted, tmp_path)
    (tmp_path / "some.npz").write_bytes(b"nothing")
    with pytest.raises(FailedPrecondition, match=r"some\.npz cannot be read"):
        wanted_inputs(FLOATS, wanted, tmp_path)
    np.savez(tmp_path / "some.npz", z=np.zeros(3, "f4"))
    with pytest.raises(FailedPrecondition, match=r"warmup: .*some\.npz"):
        wanted_inputs(FLOATS, wanted, tmp_path)


def test_a_warm_up_runs_as_often_as_wanted_and_only_when_no_other_thread_wants_its_core(
    compiled_mlp: Compiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = GraphExecutor(Repository(compiled_mlp.subgraphs[0].parent.parent), "mlp", 1)
    ran: list[int] = []
    run = executor.run

    def noted(requests: object) -> object:
        ran.append(os.sched_getscheduler(threading.get_native_id()))
        return run(requests)  # type: ignore[arg-type]

    monkeypatch.setattr(executor, "run", noted)
    own = os.sched_getscheduler(threading.get_native_id())
    executor.warm_up(sorted(os.sched_getaffinity(0)), WarmUp(runs=3))
    assert ran == [os.SCHED_IDLE] * 3
    assert os.sched_getscheduler(threading.get_native_id()) == own


def test_runs_that_find_no_idle_time_take_a_share_with_a_low_priority() -> None:
    priorities: list[tuple[int, int]] = []

    def run() -> None:
        thread = threading.get_native_id()
        priorities.append((os.sched_getscheduler(thread), os.getpriority(os.PRIO_PROCESS, thread)))

    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    run_aside(run, 2, idle_for=0.0)
    assert priorities == [(os.SCHED_OTHER, min(own + 10, 19))] * 2


def test_a_run_aside_that_fails_ends_the_others() -> None:
    runs: list[int] = []

    def run() -> None:
        runs.append(1)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        run_aside(run, 5)
    assert len(runs) == 1


def test_a_version_whose_warm_up_fails_is_not_announced_until_its_configuration_changes(
    compiled_mlp: Compiled, tmp_path: Path
) -> None:
    repository = Path(shutil.copytree(compiled_mlp.subgraphs[0].parent.parent, tmp_path / "repository"))
    config = repository / "mlp" / "config.toml"
    config.write_text('[warmup]\ninputs = "none.npz"\n')
    options = ["--repository", str(repository), "--refresh", "0.1", "--processes", "1", "--threads", "1"]
    with running_broker() as broker, running_workers(broker.backend, *options) as workers:
        workers.wait_for(r"mlp version 1 is not served: .*none\.npz cannot be read")
        with Client(broker.frontend) as client:
            assert client.models() == []
            config.write_text("[warmup]\nruns = 2\n")
            eventually(lambda: [m["version"] for m in client.models()] == [1])
