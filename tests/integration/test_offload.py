"""The whole path: split a model file, serve its subgraph by real workers, and run the device bundle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import zmq_offload
from tests.support import onnx_models
from tests.support.processes import Fabric, Process, eventually, running_broker, running_workers
from zmq_offload import Client
from zmq_offload.compile import Region, compile_model
from zmq_offload.errors import FailedPrecondition, InvalidArgument, NotFound

SHAPE = (1, 3, 12, 16)


@dataclass
class Served:
    """A fabric that serves `net`, with the split model and the uncut one."""

    fabric: Fabric
    workers: Process
    dist: Path
    onnx: Path

    def expected(self, x: np.ndarray) -> np.ndarray:
        session = onnxruntime.InferenceSession(self.onnx, providers=["CPUExecutionProvider"])
        return session.run(None, {"x": x})[0]  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    onnx = onnx_models.convnet(folder / "net.onnx")
    dist = folder / "dist"
    compile_model(onnx, inputs={"x": SHAPE}, cut=["features"], name="net", output=dist)
    options = ["--repository", str(dist / "repository"), "--processes", "2", "--refresh", "0.2"]
    with running_broker() as fabric, running_workers(fabric.backend, *options) as workers:
        with Client(fabric.frontend) as client:
            eventually(lambda: [m["workers"] for m in client.models()] == [2], timeout=60)
        yield Served(fabric, workers, dist, onnx)


def image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(SHAPE).astype("f4")


def test_the_split_model_computes_what_the_uncut_one_does(served: Served) -> None:
    with zmq_offload.load(served.dist / "device", broker=served.fabric.frontend) as model:
        for seed in range(3):
            np.testing.assert_allclose(model(image(seed)), served.expected(image(seed)), atol=1e-5)


def test_each_call_of_the_model_is_one_request(served: Served) -> None:
    with Client(served.fabric.frontend) as client:
        before = client.status()["requests"]["accepted"]
        with zmq_offload.load(served.dist / "device", client=client) as model:
            for _ in range(5):
                model(image(0))
        assert client.status()["requests"]["accepted"] == before + 5


def test_many_devices_and_threads_share_the_workers(served: Served) -> None:
    expected = [served.expected(image(seed)) for seed in range(8)]

    def device(seed: int) -> None:
        with zmq_offload.load(served.dist / "device", broker=served.fabric.frontend) as model:
            for _ in range(5):
                np.testing.assert_allclose(model(image(seed)), expected[seed], atol=1e-5)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(device, range(8)))
    with Client(served.fabric.frontend) as client:
        assert all(worker["served"] for worker in client.status()["workers"])


def test_models_lists_the_signature(served: Served) -> None:
    with Client(served.fabric.frontend) as client:
        (model,) = (m for m in client.models() if m["version"] == 1)
    assert model["inputs"] == [{"name": "features", "datatype": "FP32", "shape": [1, 8, 12, 16]}]
    assert model["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [1, 10]}]


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({}, "input 'features' is missing"),
        ({"feature": np.zeros((1, 8, 12, 16), "f4")}, "input 'features' is missing, input 'feature' is not known"),
        ({"features": np.zeros((1, 8, 12, 16), "f4"), "y": np.zeros(1)}, "input 'y' is not known"),
        ({"features": np.zeros((2, 8, 12, 16), "f4")}, r"shape \[2, 8, 12, 16\], it takes features FP32\[1,8,12,16\]"),
        ({"features": np.zeros((1, 8, 12, 16), "f8")}, "has datatype FP64, it takes features FP32"),
    ],
)
def test_tensors_that_do_not_fit_are_named(served: Served, inputs: dict[str, np.ndarray], says: str) -> None:
    with Client(served.fabric.frontend) as client, pytest.raises(InvalidArgument, match=says):
        client.infer("net", inputs)


def test_nan_passes_through(served: Served) -> None:
    with Client(served.fabric.frontend) as client:
        outputs = client.infer("net", {"features": np.full((1, 8, 12, 16), np.nan, "f4")})
    assert np.isnan(outputs["y"]).all()


def test_the_model_raises_the_errors_of_the_fabric(served: Served, tmp_path: Path) -> None:
    device = Path(shutil.copytree(served.dist / "device", tmp_path / "device"))
    manifest = json.loads((device / "manifest.json").read_text())
    manifest["offloaded"][0]["model"] = "gone"
    (device / "manifest.json").write_text(json.dumps(manifest))
    with (
        zmq_offload.load(device, broker=served.fabric.frontend) as model,
        pytest.raises(NotFound, match=r"'gone'; served are: net \(version"),
    ):
        model(image(0))


def test_a_new_version_is_served_without_a_restart_and_a_damaged_one_leaves_the_others_alone(served: Served) -> None:
    repository = served.dist / "repository" / "net"
    # Damaged: a truncated library, a file with the right checksum that is not a library, bad JSON, another TVM.
    for version, spoil in ((7, truncate), (8, replace), (9, garble), (10, age)):
        draft = Path(shutil.copytree(repository / "1", repository / f".{version}"))
        edit(draft, version=version)
        spoil(draft)
        draft.rename(repository / str(version))
    served.workers.wait_for(r"net version 7 is not served: .*/net/7/subgraph\.so is damaged")
    served.workers.wait_for(r"net version 8 is not served: .*/net/8/subgraph\.so cannot be loaded")
    served.workers.wait_for(r"net version 9 is not served: .*/net/9/model\.json is damaged")
    served.workers.wait_for(r"net version 10 is not served: .*/net/10 was built by TVM 0\.1\.2, this is TVM 0\.27")
    with Client(served.fabric.frontend) as client:
        features = {"features": np.zeros((1, 8, 12, 16), "f4")}
        assert client.infer("net", features).version == 1
        compile_model(
            served.onnx,
            inputs={"x": SHAPE},
            cut=["features"],
            name="net",
            version=2,
            output=served.dist,
            only_subgraph=True,
        )
        eventually(lambda: client.infer("net", features).version == 2, timeout=30)
        assert client.infer("net", features, version=1).version == 1
        shutil.rmtree(repository / "2")
        eventually(lambda: client.infer("net", features).version == 1, timeout=30)


def test_a_version_with_another_signature_is_not_chosen_for_a_device_and_the_error_names_it(
    served: Served, tmp_path: Path
) -> None:
    dist = Path(shutil.copytree(served.dist, tmp_path / "dist", ignore=shutil.ignore_patterns("7", "8", "9", "10")))
    repository = dist / "repository"
    compile_model(
        served.onnx,
        inputs={"x": (1, 3, 6, 8)},
        cut=["features"],
        name="net",
        version=2,
        output=tmp_path / "other",
        repository=repository,
        new_signature=True,
    )
    with (
        running_broker("--worker-grace", "0.5") as fabric,
        running_workers(fabric.backend, "--repository", str(repository), "--refresh", "0.2"),
        zmq_offload.load(served.dist / "device", broker=fabric.frontend, timeout=20) as model,
        Client(fabric.frontend) as client,
    ):
        eventually(lambda: [m["version"] for m in client.models()] == [1, 2], timeout=60)
        assert [m["latest"] for m in client.status()["models"]] == [False, True]
        np.testing.assert_allclose(model(image(0)), served.expected(image(0)), rtol=1e-3, atol=1e-4)
        # Without a signature, a client gets the latest version.
        assert client.infer("net", {"features": np.zeros((1, 8, 6, 8), "f4")}).version == 2
        shutil.rmtree(repository / "net" / "1")
        eventually(lambda: [m["version"] for m in client.models()] == [2], timeout=30)
        with pytest.raises(FailedPrecondition) as caught:
            model(image(0))
    assert "version 2 takes features FP32[1,8,6,8] and returns" in caught.value.message
    assert "this device bundle was built for one that takes features FP32[1,8,12,16]" in caught.value.message


def edit(folder: Path, **changes: object) -> None:
    file = folder / "model.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def truncate(folder: Path) -> None:
    library = folder / "subgraph.so"
    library.write_bytes(library.read_bytes()[:1000])


def replace(folder: Path) -> None:
    from zmq_offload.artifacts.repository import checksum

    (folder / "subgraph.so").write_bytes(b"\x7fELF and nothing else")
    edit(folder, checksum=checksum(folder / "subgraph.so"))


def garble(folder: Path) -> None:
    (folder / "model.json").write_text("{")


def age(folder: Path) -> None:
    edit(folder, tvm_version="0.1.2")


def test_a_bundle_for_another_tvm_is_refused(served: Served, tmp_path: Path) -> None:
    device = Path(shutil.copytree(served.dist / "device", tmp_path / "device"))
    manifest = json.loads((device / "manifest.json").read_text())
    (device / "manifest.json").write_text(json.dumps(manifest | {"tvm_version": "0.26.0"}))
    with pytest.raises(FailedPrecondition, match=r"built by TVM 0\.26\.0, this is TVM 0\.27"):
        zmq_offload.load(device, broker=served.fabric.frontend)


def test_two_regions_of_a_model_run_at_two_workers_at_once(tmp_path: Path) -> None:
    """Each worker replies only when both have a request. One call after the other would wait forever."""
    path = onnx_models.branches(tmp_path / "branches.onnx")
    regions = [Region("left", ["features"], ["left"]), Region("right", ["features"], ["right"], wire="float16")]
    compiled = compile_model(path, inputs={"x": SHAPE}, regions=regions, output=tmp_path)
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    options = ("--repository", str(tmp_path / "repository"), "--processes", "2", "--slots", "1")
    rendezvous = {"RENDEZVOUS": str(meeting), "RENDEZVOUS_OF": "2"}
    with (
        running_broker() as fabric,
        running_workers(fabric.backend, *options, program="tests.support.faulty_worker", **rendezvous),
        Client(fabric.frontend, timeout=30) as client,
    ):
        eventually(lambda: [m["workers"] for m in client.models()] == [2, 2], timeout=60)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        with zmq_offload.load(compiled.device, client=client) as model:
            for found, expected in zip(model(image(1)), session.run(None, {"x": image(1)}), strict=True):
                np.testing.assert_allclose(found, expected, atol=0.02)
        assert sorted(p.name for p in meeting.iterdir()) == ["left", "right"]
        assert client.status()["requests"]["accepted"] == 2


def test_a_region_whose_model_is_removed_fails_the_call_with_its_error(tmp_path: Path) -> None:
    path = onnx_models.branches(tmp_path / "branches.onnx")
    regions = [Region("left", ["features"], ["left"]), Region("right", ["features"], ["right"])]
    compiled = compile_model(path, inputs={"x": SHAPE}, regions=regions, output=tmp_path)
    shutil.rmtree(tmp_path / "repository" / "right")
    with (
        running_broker() as fabric,
        running_workers(fabric.backend, "--repository", str(tmp_path / "repository")),
        Client(fabric.frontend) as client,
        zmq_offload.load(compiled.device, client=client) as model,
    ):
        eventually(lambda: [m["name"] for m in client.models()] == ["left"], timeout=60)
        with pytest.raises(NotFound, match="right"):
            model(image(0))
