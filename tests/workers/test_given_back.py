"""A version that config.toml leaves out gives its memory back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from tests.support import onnx_models
from tests.support.memory import MB, resident_bytes
from tests.support.processes import eventually, running_broker, running_workers, worker_pids
from zmq_offload import Client
from zmq_offload.artifacts import configedit
from zmq_offload.artifacts.repository import Repository
from zmq_offload.compile import compile_model

SIDE = 4096  # 64 MB of weights


@pytest.mark.load
def test_the_memory_of_an_unloaded_version_is_given_back(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["h"]), helper.make_node("MatMul", ["h", "w"], ["y"])]
    weights = {"w": onnx_models.random(SIDE, SIDE)}
    path = onnx_models.write(tmp_path / "m.onnx", nodes, {"x": [1, SIDE]}, {"y": [1, SIDE]}, weights)
    compile_model(path, cut=["h"], name="large", output=tmp_path)
    repository = Repository(tmp_path / "repository")
    configedit.unload(repository, "large")
    options = ["--repository", str(repository.root), "--refresh", "0.1", "--processes", "1", "--threads", "1"]
    left: list[int] = []
    with running_broker() as broker, running_workers(broker.backend, *options), Client(broker.frontend) as client:
        (pid,) = eventually(lambda: worker_pids(broker.frontend), timeout=60)
        for _ in range(3):
            configedit.load(repository, "large")
            eventually(client.models, timeout=60)
            client.infer("large", {"h": np.ones((1, SIDE), np.float32)})
            loaded = resident_bytes(pid)
            configedit.unload(repository, "large")
            eventually(lambda: not client.models(), timeout=60)
            eventually(lambda most=loaded - 48 * MB: resident_bytes(pid) < most, timeout=30)
            left.append(resident_bytes(pid))
    assert max(left[1:]) < left[0] + 16 * MB  # what the first load leaves, such as TVM's own code, stays
