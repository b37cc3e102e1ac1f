"""Model control by the repository, in front of a fabric without a broker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.fake_fabric import ALL, FakeFabric, model
from zmq_offload.artifacts.repository import Repository
from zmq_offload.errors import FailedPrecondition, Internal, OffloadError, PermissionDenied, Unavailable
from zmq_offload.gateway.catalog import Catalog, Indexed
from zmq_offload.gateway.control import ModelControl
from zmq_offload.gateway.deploying import DeployingFabric
from zmq_offload.net.grants import Grant


class Bench:
    """A repository of model `m` with versions 1 and 2, and a fabric that serves what `follow` says."""

    def __init__(self, root: Path, allowed: bool = True, wait: float = 20.0) -> None:
        self.root = root
        for version in ("1", "2"):
            (root / "m" / version).mkdir(parents=True)
        self.inner = FakeFabric()
        self._allowed, self._wait = allowed, wait

    def write(self, text: str) -> None:
        (self.root / "m" / "config.toml").write_text(text)

    @property
    def text(self) -> str:
        return (self.root / "m" / "config.toml").read_text()

    def serve(self, *versions: int) -> None:
        self.inner.catalog = Catalog([model("m", version=version) for version in versions])

    def ask(self, method: str, *given: Any, grant: Grant = ALL, then: Callable[[], None] | None = None) -> Any:
        """What came of a call; `then` is called once its change is written."""

        async def run() -> Any:
            control = ModelControl(self._allowed)
            fabric = DeployingFabric(self.inner, Repository(self.root), control, self._wait)
            answered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            before = self.text if (self.root / "m" / "config.toml").exists() else ""
            getattr(fabric, method)(*given, grant, answered.set_result)
            if then is not None:
                while not (self.root / "m" / "config.toml").exists() or self.text == before:
                    await asyncio.sleep(0.001)
                assert not answered.done()
                then()
            return await asyncio.wait_for(answered, 20)

        return asyncio.run(run())


def test_a_model_is_unloaded_and_loaded_in_the_repository(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.serve(1, 2)
    assert bench.ask("unload", "m", then=bench.serve) is None
    assert bench.text == "unloaded = true\n"
    assert bench.ask("index") == [Indexed("m", 1, False, "unloaded"), Indexed("m", 2, False, "unloaded")]
    assert bench.ask("load", "m", then=lambda: bench.serve(1, 2)) is None
    assert bench.text == ""
    assert bench.ask("index") == [Indexed("m", 1, True), Indexed("m", 2, True)]


def test_a_model_that_is_loaded_stays_as_its_configuration_says(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.write("versions = { latest = 1 }  # the new one\n")
    bench.serve(2)
    assert bench.ask("load", "m") is None
    assert bench.text == "versions = { latest = 1 }  # the new one\n"
    assert bench.ask("index") == [Indexed("m", 1, False, "unloaded"), Indexed("m", 2, True)]


def test_the_index_says_why_a_version_is_not_ready(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.inner.catalog = Catalog([model("elsewhere"), model("m")])
    assert bench.ask("index") == [
        Indexed("elsewhere", 1, True),
        Indexed("m", 1, True),
        Indexed("m", 2, False, "no worker serves it"),
    ]
    bench.write("version = 1")
    assert "config.toml is wrong" in bench.ask("index")[2].reason
    assert [entry.name for entry in bench.ask("index", grant=Grant("other", frozenset({"elsewhere"})))] == ["elsewhere"]


def test_what_workers_do_not_follow_is_an_error(tmp_path: Path) -> None:
    bench = Bench(tmp_path, wait=0.0)
    error = bench.ask("load", "m")
    assert isinstance(error, Unavailable) and "served versions: none" in error.message
    bench.serve(2)
    error = bench.ask("unload", "m")
    assert isinstance(error, Unavailable) and "served versions: 2" in error.message


@pytest.mark.parametrize(
    ("method", "name", "kind", "says"),
    [
        ("load", "nobody", Internal, "failed to load 'nobody', failed to poll from model repository"),
        ("load", "../m", Internal, "failed to load '../m'"),
        ("unload", "elsewhere", FailedPrecondition, "not in this gateway's repository"),
    ],
)
def test_models_that_the_repository_does_not_have(
    method: str, name: str, kind: type[OffloadError], says: str, tmp_path: Path
) -> None:
    bench = Bench(tmp_path)
    bench.inner.catalog = Catalog([model("elsewhere")])
    error = bench.ask(method, name)
    assert type(error) is kind and says in error.message
    assert bench.ask("unload", "nobody") is None


def test_nothing_is_written_without_the_right_to(tmp_path: Path) -> None:
    assert type(Bench(tmp_path / "a", allowed=False).ask("unload", "m")) is Unavailable
    bench = Bench(tmp_path / "b")
    assert type(bench.ask("unload", "m", grant=Grant("other", frozenset({"elsewhere"})))) is PermissionDenied
    assert not list(tmp_path.glob("*/m/config.toml"))


def test_a_broker_that_does_not_answer_and_a_wrong_configuration_are_told(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.inner.catalog = Unavailable("no broker")
    assert type(bench.ask("index")) is Unavailable
    bench.write("nothing = 1")
    assert type(bench.ask("load", "m")) is FailedPrecondition


def test_a_fault_is_told_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(Repository, "versions", lambda *_: 1 / 0)
    assert type(Bench(tmp_path).ask("load", "m")) is Internal
    assert "the repository cannot be used" in caplog.text


def test_a_canceled_change_is_not_reported(tmp_path: Path) -> None:
    bench, answers = Bench(tmp_path), []

    async def run() -> None:
        fabric = DeployingFabric(bench.inner, Repository(tmp_path), ModelControl(True))
        fabric.load("m", ALL, answers.append)()
        cancel = fabric.load("m", ALL, answers.append)
        await asyncio.sleep(0.05)
        cancel()
        await asyncio.sleep(0.05)
        assert not fabric._tasks

    asyncio.run(run())
    assert answers == []
