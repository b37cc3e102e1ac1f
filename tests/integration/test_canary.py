"""Labels and canaries with a real broker and real workers, which follow a model's config.toml."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.request import Request, urlopen

import numpy as np
import pytest

import zmq_offload
from tests.support.processes import Fabric, eventually, running_broker, running_gateway, running_workers
from zmq_offload import Client
from zmq_offload.errors import FailedPrecondition, Internal, NotFound
from zmq_offload.transports.client import ServerClient

if TYPE_CHECKING:
    from zmq_offload.compile import Compiled

H2 = {"h2": np.ones((2, 16), "f4")}
CALLERS = 24
SHARE = 0.4


class Served(NamedTuple):
    folder: Path
    """Of the model."""
    faulty: Path
    fabric: Fabric

    def configure(self, text: str) -> None:
        draft = self.folder / ".config.toml"
        draft.write_text(text)
        draft.replace(self.folder / "config.toml")

    def model(self, version: int) -> dict[str, Any]:
        with Client(self.fabric.frontend) as client:
            return next(model for model in client.status()["models"] if model["version"] == version)


@pytest.fixture(scope="module")
def served(compiled_mlp: Compiled, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Two workers with versions 1 and 2 of the model "mlp"."""
    home = tmp_path_factory.mktemp("canary")
    repository = Path(shutil.copytree(compiled_mlp.device.parent / "repository", home / "repository"))
    folder = repository / "mlp"
    second = Path(shutil.copytree(folder / "1", folder / "2"))
    described = json.loads((second / "model.json").read_text()) | {"version": 2}
    (second / "model.json").write_text(json.dumps(described))
    faulty = home / "faulty"
    faulty.write_text("")
    options = ["--repository", str(repository), "--refresh", "0.1", "--processes", "2"]
    with (
        running_broker() as fabric,
        running_workers(fabric.backend, *options, program="tests.support.faulty_worker", FAULTY_VERSION=str(faulty)),
    ):
        found = Served(folder, faulty, fabric)
        with Client(fabric.frontend) as client:
            eventually(lambda: [m["workers"] for m in client.models()] == [2, 2], timeout=60)
        yield found


def outcome(client: Client) -> str:
    """The version that runs a request, or "failed"."""
    try:
        return str(client.infer("mlp", H2).version)
    except Internal:
        return "failed"


def test_a_label_is_followed_by_clients_and_by_bundles(served: Served, compiled_mlp: Compiled, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(compiled_mlp.device, tmp_path / "device"))
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["offloaded"][0]["version"] = "label:stable"
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    x = np.ones((2, 8), "f4")
    with Client(served.fabric.frontend) as client, zmq_offload.load(bundle, broker=served.fabric.frontend) as device:
        assert client.infer("mlp", H2).version == 2
        with pytest.raises(NotFound, match="model 'mlp' has no label 'stable'; it has no labels"):
            client.infer("mlp", H2, label="stable")
        served.configure("[labels]\nstable = 1\n")
        eventually(lambda: [model["labels"] for model in client.models()] == [["stable"], []])
        assert client.infer("mlp", H2, label="stable").version == 1
        assert client.submit("mlp", H2, label="stable").result().version == 1
        wrong = zmq_offload.Latest(b"s" * 16)
        with pytest.raises(
            FailedPrecondition, match="label 'stable' stands for version 1, which has another signature"
        ):
            client.infer("mlp", H2, version=wrong, label="stable")
        with ServerClient(served.fabric.frontend) as servers:  # as beside servers of other kinds
            assert servers.infer("mlp", H2, label="stable").version == 1
            with pytest.raises(FailedPrecondition, match="another signature"):
                servers.infer("mlp", H2, version=wrong, label="stable")
        before = served.model(1)["statistics"]["requests"]["ok"]
        expected = device(x)
        assert served.model(1)["statistics"]["requests"]["ok"] == before + 1
        served.configure("[labels]\nstable = 2\n")
        eventually(lambda: client.infer("mlp", H2, label="stable").version == 2)
        np.testing.assert_array_equal(device(x), expected)
    assert any("label 'stable' stands for version 2 now" in line for line in served.fabric.broker.seen())


def test_a_gateway_passes_on_labels_and_who_asks(served: Served) -> None:
    served.configure("labels = { stable = 1 }\n[canary]\nversion = 2\nshare = 0.5\n")
    eventually(lambda: "canary" in served.model(2) and served.model(1)["labels"] == ["stable"])
    tensor = {"name": "h2", "shape": [2, 16], "datatype": "FP32", "data": [1.0] * 32}
    body = json.dumps({"inputs": [tensor]}).encode()
    with running_gateway(served.fabric.frontend) as gateway:

        def version(**headers: str) -> str:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            asked = Request(f"{gateway.url}/v2/models/mlp/infer", body, named)
            with urlopen(asked, timeout=20) as response:
                return str(json.loads(response.read())["model_version"])

        assert {version(x_zmq_offload_label="stable") for _ in range(20)} == {"1"}
        assert {version() for _ in range(40)} == {"1", "2"}, "a request of nobody known is drawn by itself"
        by_caller = [{version(x_zmq_offload_caller=f"user {n}") for _ in range(3)} for n in range(20)]
        assert all(len(versions) == 1 for versions in by_caller), "a caller stays with a version"
        assert set.union(*by_caller) == {"1", "2"}
        with urlopen(f"{gateway.url}/v1/models/mlp/labels/stable/metadata", timeout=20) as response:
            assert json.loads(response.read())["model_spec"]["version"] == "1"
    served.configure("")
    eventually(lambda: served.model(2)["latest"])


@pytest.mark.parametrize(("fault", "why"), [("fails", "of its"), ("slow", "95 % of its requests")])
def test_a_canary_that_is_worse_is_returned_under_load(served: Served, fault: str, why: str) -> None:
    served.faulty.write_text(f"2 {fault}")
    served.configure(f"[canary]\nversion = 2\nshare = {SHARE}\nmin_requests = 20\n")
    eventually(lambda: served.model(2).get("canary", {}).get("returned") == "")
    assert served.model(1)["latest"], "a canary is not the latest, although all workers have it"
    clients = [Client(served.fabric.frontend) for _ in range(CALLERS)]
    outcomes: list[list[str]] = [[] for _ in clients]
    try:

        def everybody_asks() -> bool:
            for client, seen in zip(clients, outcomes, strict=True):
                seen.append(outcome(client))
            return bool(served.model(2)["canary"]["returned"])

        eventually(everybody_asks, timeout=60)
        for client in clients:
            assert client.infer("mlp", H2).version == 1, "all requests go to the stable version again"
    finally:
        for client in clients:
            client.close()
    tried = "failed" if fault == "fails" else "2"
    drawn = [seen for seen in outcomes if tried in seen]
    assert 0 < len(drawn) < CALLERS
    for seen in outcomes:  # a client stays with its version, until the canary is returned in the last round
        assert set(seen[:-1]) <= {tried} or set(seen) == {"1"}
    canary = served.model(2)["canary"]
    assert why in canary["returned"]
    failures = sum(seen.count("failed") for seen in outcomes)
    assert failures <= sum(map(len, drawn)), "no caller outside of the share sees an error"
    eventually(
        lambda: [line for line in served.fabric.broker.seen() if "is no canary any more" in line and why in line]
    )
    with Client(served.fabric.frontend) as client:  # the workers remember it, and would tell another broker
        eventually(lambda: [m["config"].get("returned") for m in client.models()] == [canary["returned"]] * 2)
    served.faulty.write_text("")
    served.configure("")
    eventually(lambda: served.model(2)["latest"], timeout=20)
