"""`zmq-offload models` and workers that follow it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from tests.support import onnx_models
from tests.support.processes import eventually, running_broker, running_gateway, running_workers
from tests.support.triton_clients import Session
from zmq_offload import Client
from zmq_offload.cli.main import main
from zmq_offload.compile import compile_model
from zmq_offload.testing import Fabric

H2 = {"h2": np.ones((2, 16), "f4")}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three versions of one model."""
    folder = tmp_path_factory.mktemp("models")
    path = onnx_models.mlp(folder / "m.onnx")
    compile_model(path, inputs={"x": (2, 8)}, cut=["h2"], until=["h4"], name="mlp", output=folder)
    model = folder / "repository" / "mlp"
    for version in (2, 3):
        shutil.copytree(model / "1", model / str(version))
        described = json.loads((model / "1" / "model.json").read_text()) | {"version": version}
        (model / str(version) / "model.json").write_text(json.dumps(described))
    return folder / "repository"


@pytest.fixture(scope="module")
def fabric(repository: Path) -> Iterator[Fabric]:
    options = ["--repository", str(repository), "--refresh", "0.1", "--processes", "2", "--threads", "1"]
    with running_broker() as fabric, running_workers(fabric.backend, *options):
        with Client(fabric.frontend) as client:
            eventually(lambda: [m["workers"] for m in client.models()] == [2, 2, 2], timeout=60)
        yield fabric


def models(fabric: Fabric, repository: Path, *words: str) -> int:
    return main(["models", *words, "--repository", str(repository), "--broker", fabric.frontend])


def test_versions_and_labels_are_changed_while_workers_serve(
    fabric: Fabric, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Client(fabric.frontend) as client:
        assert client.infer("mlp", H2).version == 3
        assert models(fabric, repository, "label", "mlp", "stable", "2", "--wait", "20") == 0
        assert models(fabric, repository, "unload", "mlp:3", "--wait", "20") == 0
        assert client.infer("mlp", H2).version == 2
        capsys.readouterr()
        assert models(fabric, repository, "list") == 0
        lines = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
        assert lines == [
            ["mlp", "1", "yes", "by", "2", "workers"],
            ["mlp", "2", "yes", "by", "2", "workers", "yes", "stable"],
            ["mlp", "3", "no", "no"],
        ]
        assert models(fabric, repository, "load", "mlp", "--wait", "20") == 0
        eventually(lambda: client.infer("mlp", H2).version == 3)  # when both workers have it
        assert models(fabric, repository, "unload", "mlp", "--wait", "20") == 0
        assert client.models() == []
        assert models(fabric, repository, "load", "mlp:1", "--wait", "20") == 0
        assert client.infer("mlp", H2).version == 1


@pytest.mark.parametrize("kind", ["http", "grpc"])
def test_tritons_clients_load_and_unload_for_all(
    fabric: Fabric, repository: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert models(fabric, repository, "load", "mlp", "--wait", "20") == 0
    options = ("--model-control", "--repository", str(repository))
    with running_gateway(fabric.frontend, options=options) as gateway, Client(fabric.frontend) as client:
        session = Session(kind, getattr(gateway, kind))
        try:
            session.unload_model("mlp")
            assert client.models() == []
            assert not session.is_model_ready("mlp")
            answer = session.plain(session.get_model_repository_index())
            index = answer if kind == "http" else answer["models"]
            assert [(entry["version"], entry["state"], entry["reason"]) for entry in index] == [
                (version, "UNAVAILABLE", "unloaded") for version in "123"
            ]
            session.load_model("mlp")
            assert session.is_model_ready("mlp") and client.infer("mlp", H2).version == 3
            with pytest.raises(InferenceServerException, match="failed to load 'nobody'"):
                session.load_model("nobody")
        finally:
            session.close()


def test_what_no_worker_follows_is_an_error(repository: Path, echo_fabric: Fabric, tmp_path: Path) -> None:
    own = Path(shutil.copytree(repository, tmp_path / "repository"))
    (own / "mlp" / "config.toml").unlink(missing_ok=True)
    command = ["models", "load", "mlp", "--repository", str(own), "--broker", echo_fabric.frontend, "--wait", "0.3"]
    assert main(command) == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["load", "mlp:x"], "'mlp:x' has no version number after its colon; use MODEL or MODEL:VERSION"),
        (["load", "mlp:0"], "version 0 is not a whole number from 1"),
        (["unload", "../x"], "model name '../x' is not valid"),
        (["label", "mlp", "stable"], "one of the arguments VERSION --remove is required"),
    ],
)
def test_wrong_words_are_one_line(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["models", *words])
    assert (ended.value.code, says in capsys.readouterr().err) == (2, True)


def test_without_a_broker_the_repository_is_listed(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["models", "list", "--repository", str(repository), "--broker", "tcp://127.0.0.1:9", "--timeout", "0.2"]
    config = repository / "mlp" / "config.toml"
    config.write_text("versions = 1")
    assert main(command) == 0
    config.unlink()
    said = capsys.readouterr().out
    assert "what is served is not known: no broker answered" in said
    assert "config.toml: versions is 1" in said
    (row,) = [line.split() for line in said.splitlines() if line.split()[:2] == ["mlp", "1"]]
    assert row == ["mlp", "1", "?", "?"], "neither what is wanted nor what is served"
