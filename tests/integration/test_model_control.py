"""Labels, canaries, kept answers and warm-up with real processes: workers, a broker and a gateway."""

from __future__ import annotations

import json
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.support import onnx_models
from tests.support.processes import Process, eventually, running_broker, running_gateway, running_workers
from zmq_offload import Client
from zmq_offload.compile import compile_model
from zmq_offload.testing import Fabric

H2 = {"h2": np.ones((2, 16), "f4")}
BODY = json.dumps({"inputs": [{"name": "h2", "datatype": "FP32", "shape": [2, 16], "data": [1.0] * 32}]}).encode()
CONFIG = "[cache]\nseconds = 600\n\n[labels]\nstable = 1\n"


class Served(NamedTuple):
    repository: Path
    fabric: Fabric
    workers: Process
    gateway: str

    def configure(self, text: str) -> None:
        draft = self.repository / "mlp" / ".config"
        draft.write_text(text)
        draft.rename(self.repository / "mlp" / "config.toml")

    def infer(self) -> dict[str, Any]:
        request = urllib.request.Request(f"{self.gateway}/v2/models/mlp/infer", BODY)
        with urllib.request.urlopen(request, timeout=20) as response:
            answer: dict[str, Any] = json.load(response)
        return answer

    def statistics(self, version: int) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.gateway}/v2/models/mlp/versions/{version}/stats", timeout=20) as response:
            found: dict[str, Any] = json.load(response)["model_stats"][0]["inference_stats"]
        return found


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Two versions of one model."""
    folder = tmp_path_factory.mktemp("control")
    path = onnx_models.mlp(folder / "m.onnx")
    compile_model(path, inputs={"x": (2, 8)}, cut=["h2"], until=["h4"], name="mlp", output=folder)
    model = folder / "repository" / "mlp"
    shutil.copytree(model / "1", model / "2")
    described = json.loads((model / "1" / "model.json").read_text()) | {"version": 2}
    (model / "2" / "model.json").write_text(json.dumps(described))
    (model / "config.toml").write_text(CONFIG)
    options = ["--repository", str(folder / "repository"), "--refresh", "0.1", "--threads", "1"]
    with (
        running_broker() as fabric,
        running_workers(fabric.backend, *options) as workers,
        running_gateway(fabric.frontend) as gateway,
    ):
        with Client(fabric.frontend) as client:
            eventually(lambda: len(client.models()) == 2, timeout=60)
        yield Served(folder / "repository", fabric, workers, gateway.url)


def test_a_gateway_gives_kept_answers_until_another_version_is_the_latest(served: Served) -> None:
    eventually(lambda: served.infer() and served.statistics(2)["cache_hit"]["count"] > 0, timeout=20)
    first = served.infer()
    with Client(served.fabric.frontend) as client:
        (worker,) = client.status()["workers"]
        again = served.infer()
        assert again["outputs"] == first["outputs"]
        assert client.status()["workers"][0]["served"] == worker["served"], "no worker ran it"
        served.configure(CONFIG + "\n[canary]\nversion = 2\nshare = 0\n")  # version 1 is the latest now
        eventually(lambda: served.infer()["model_version"] == "1", timeout=20)
        served.configure(CONFIG)
        eventually(lambda: served.infer()["model_version"] == "2", timeout=20)


def test_a_warm_up_that_fails_keeps_a_version_back(served: Served) -> None:
    with Client(served.fabric.frontend) as client:
        served.configure("versions = [1]\n")
        eventually(lambda: [m["version"] for m in client.models()] == [1], timeout=20)
        served.configure("versions = [1, 2]\nwarmup = { inputs = 'none.npz' }\n")
        served.workers.wait_for(r"version 2 is not served: warmup: .*none.npz cannot be read")
        assert client.infer("mlp", H2).version == 1
        np.savez(served.repository / "mlp" / "good.npz", h2=H2["h2"])
        served.configure("versions = [1, 2]\nwarmup = { runs = 2, inputs = 'good.npz' }\n")
        eventually(lambda: [m["version"] for m in client.models()] == [1, 2], timeout=20)
        served.configure(CONFIG)
