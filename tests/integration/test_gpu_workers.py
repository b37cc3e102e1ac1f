"""Workers with GPUs as processes. The GPU is a stub (see `tests.support.gpu_worker`), all else is real."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support import onnx_models
from tests.support.gpus import for_a_gpu
from tests.support.processes import eventually, running_broker, running_workers, status, wait_for_workers
from zmq_offload import Client
from zmq_offload.errors import ResourceExhausted, Unavailable

H2 = onnx_models.random(2, 16, seed=3)
RIGHT = 1 / (1 + np.exp(-(H2 @ onnx_models.random(16, 8, seed=2))))
STUB = "tests.support.gpu_worker"


@pytest.fixture
def repository(fresh_mlp: Path) -> str:
    return str(for_a_gpu(fresh_mlp / "repository"))


def assert_right(client: Client) -> None:
    (found,) = client.infer("mlp", {"h2": H2}, timeout=20).values()
    np.testing.assert_allclose(found, RIGHT, atol=1e-5)


def fail_next(fault: Path, text: str) -> None:
    """Let the next run of a stub fail."""
    written = fault.with_name("written")
    written.write_text(f"CUDA Runtime Error: {text}")
    written.rename(fault)


def test_each_gpu_has_a_process_and_one_that_is_not_there_stops_no_other(repository: str, tmp_path: Path) -> None:
    """A lack of memory is an error of the request, and the worker goes on."""
    fault = tmp_path / "fault"
    with (
        running_broker() as broker,
        running_workers(
            broker.backend, "--repository", repository, "--device", "cuda:0,cuda:1,cuda:2", program=STUB, GPUS="2",
            GPU_FAULT=str(fault),
        ) as workers,
        Client(broker.frontend) as client,
    ):  # fmt: skip
        wait_for_workers(broker.frontend, 2)
        assert {worker["device"] for worker in status(broker.frontend)["workers"]} == {"cuda:0", "cuda:1"}
        told = {"used_bytes": 5 * 1024**3, "total_bytes": 80 * 1024**3, "busy_percent": 87}
        eventually(lambda: all(worker.get("gpu") == told for worker in status(broker.frontend)["workers"]))
        workers.wait_for(r"cuda:2 is not there; `nvidia-smi -L`")
        workers.wait_for(r"worker 2 ended with code 1; starting another in")
        assert_right(client)
        fail_next(fault, "cudaErrorMemoryAllocation (2): out of memory\nalways")  # one begun ahead is tried again
        with pytest.raises(ResourceExhausted, match="the GPU has too little memory for the request"):
            client.infer("mlp", {"h2": H2}, timeout=20)
        fault.unlink()
        assert_right(client)
        assert client.status()["lost_workers"] == 0


def test_a_lost_gpu_ends_the_worker_and_its_request_is_run_again(repository: str, tmp_path: Path) -> None:
    fault = tmp_path / "fault"
    with (
        running_broker() as broker,
        running_workers(
            broker.backend, "--repository", repository, "--device", "cuda:all", program=STUB, GPUS="2",
            GPU_FAULT=str(fault),
        ) as workers,
        Client(broker.frontend) as client,
    ):  # fmt: skip
        wait_for_workers(broker.frontend, 2)
        assert_right(client)
        fail_next(fault, "cudaErrorIllegalAddress (700): an illegal memory access was encountered")
        assert_right(client)
        assert not fault.exists()
        workers.wait_for(r"model 'mlp' version 1: the GPU is lost to this process \(cudaErrorIllegalAddress\); ending")
        workers.wait_for(r"worker \d ended with code 71; starting another in")
        found = client.status()
        assert (found["requests"]["retried"], found["requests"]["failed"], found["lost_workers"]) == (1, {}, 1)
        wait_for_workers(broker.frontend, 2)
        assert_right(client)


def test_under_load_runs_overlap_and_each_caller_gets_its_own_outputs(repository: str, tmp_path: Path) -> None:
    """With a fault in the middle, which takes a run that computes and one that was begun ahead with it."""
    fault, overlapped = tmp_path / "fault", tmp_path / "overlapped"
    weights = onnx_models.random(16, 8, seed=2)
    with (
        running_broker() as broker,
        running_workers(
            broker.backend, "--repository", repository, "--device", "cuda:0", program=STUB, GPU_FAULT=str(fault),
            GPU_OVERLAPPED=str(overlapped), GPU_SECONDS="0.002",
        ),
        Client(broker.frontend) as client,
    ):  # fmt: skip
        wait_for_workers(broker.frontend, 1)
        assert_right(client)  # the next is not short any more
        given = [onnx_models.random(2, 16, seed=seed) for seed in range(60)]
        calls = [client.submit("mlp", {"h2": h2}, timeout=30) for h2 in given]
        eventually(overlapped.exists)
        fail_next(fault, "cudaErrorLaunchFailure (719): unspecified launch failure")
        for h2, call in zip(given, calls, strict=True):
            (found,) = call.result().values()
            np.testing.assert_allclose(found, 1 / (1 + np.exp(-(h2 @ weights))), atol=1e-5)
        assert not fault.exists()
        found = client.status()
        assert (found["requests"]["failed"], found["lost_workers"]) == ({}, 1)
        assert 1 <= found["requests"]["retried"] <= 4, "those that the worker held"


def test_a_version_for_a_gpu_that_is_not_there_is_refused_when_it_is_loaded(repository: str) -> None:
    """By a worker without a GPU, and by one with another."""
    for_a_gpu(Path(repository), architecture="sm_80")
    with running_broker("--worker-grace", "0.1") as broker, Client(broker.frontend) as client:
        for options, says in (
            ((), r"was built for a GPU \(sm_80\), and this worker has none; start it with --device cuda:0"),
            (("--device", "cuda:0"), r"was built for a GPU of compute capability 8\.0, cuda:0 has 9\.0; compile it"),
        ):
            with running_workers(broker.backend, "--repository", repository, *options, program=STUB) as workers:
                workers.wait_for(says)
                wait_for_workers(broker.frontend, 1)
                with pytest.raises(Unavailable, match="mlp"):
                    client.infer("mlp", {"h2": H2}, timeout=20)
                assert workers.end() == 0
