"""Items of an adaptive bundle, each by the split that a controller of the test's chooses, without a broker."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Mapping
from concurrent.futures import CancelledError, Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from tests.support import onnx_models
from tests.support.bundle_secrets import contents
from tests.support.local_client import LocalClient, run_uncut
from tests.support.processes import eventually
from tests.support.split_bundles import CUTS, SplitNet, write_bundle, write_models
from zmq_offload.artifacts.manifest import MANIFEST
from zmq_offload.artifacts.repository import Repository
from zmq_offload.client.results import Outputs, Timings
from zmq_offload.compile import Compiled, Cut, compile_model
from zmq_offload.device import adaptive
from zmq_offload.device.controller import Chosen, Sample
from zmq_offload.device.model import load
from zmq_offload.errors import (
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OffloadError,
    PermissionDenied,
    Unavailable,
)

NET = SplitNet()
X = np.random.default_rng(1).random((1, NET.widths[0]), np.float32)
Y = NET.expected(X)


class Scripted:
    """A controller that chooses what the test wants, and keeps what it is told."""

    wants: int | list[int] = 0
    explores = False
    made: ClassVar[list[Scripted]] = []

    def __init__(self, splits: Any, objective: str = "latency", *, local: Any = False, seed: int = 0) -> None:
        self.facts, self.objective, self.local = splits, objective, local
        self.told: list[tuple[Any, ...]] = []
        self.made.append(self)

    def choose(self, now: float) -> Chosen:
        wants = Scripted.wants
        return Chosen(wants.pop(0) if isinstance(wants, list) else wants, 0.25, Scripted.explores, 0.01)

    def took(self, chosen: Chosen, sample: Sample, now: float) -> None:
        self.told.append(("took", chosen.split, sample))

    def ran_here(self, chosen: Chosen, seconds: float, now: float) -> None:
        self.told.append(("here", chosen.split, seconds))

    def missed(self, chosen: Chosen, waited: float, now: float) -> None:
        self.told.append(("missed", chosen.split, waited))

    def abandoned(self, chosen: Chosen) -> None:
        self.told.append(("abandoned", chosen.split))

    def explain(self, now: float) -> SimpleNamespace:
        return SimpleNamespace(why=f"why {len(self.told)}")


class Workers(LocalClient):
    """Serves the family, except for models with an `errors` entry. Replies say where the time went."""

    def __init__(self, repository: Path) -> None:
        super().__init__(repository)
        self.errors: dict[str, BaseException] = {}
        self.timings: Timings | None = None

    def infer(self, model: str, inputs: Mapping[str, Any], **options: Any) -> Mapping[str, Any]:
        found = super().infer(model, inputs, **options)
        if model in self.errors:
            raise self.errors[model]
        return found if self.timings is None else Outputs(found, model, 1, self.timings)

    @property
    def models(self) -> list[str]:
        return [call[0] for call in self.calls]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`device`, `sealed` and `repository`, not to be changed."""
    folder = tmp_path_factory.mktemp("adaptive")
    write_models(Repository(folder / "repository"), NET)
    write_bundle(folder / "device", NET)
    write_bundle(folder / "sealed", NET, local=False)
    return folder


@pytest.fixture
def workers(built: Path) -> Workers:
    return Workers(built / "repository")


@pytest.fixture(autouse=True)
def controllers(monkeypatch: pytest.MonkeyPatch) -> list[Scripted]:
    monkeypatch.setattr(adaptive, "Controller", Scripted)
    monkeypatch.setattr(Scripted, "made", [])
    monkeypatch.setattr(Scripted, "wants", 0)
    monkeypatch.setattr(Scripted, "explores", False)
    return Scripted.made


def check(model: Any) -> None:
    np.testing.assert_allclose(model(X), Y, atol=1e-5)


def test_each_split_computes_the_same_and_its_times_are_told(
    built: Path, workers: Workers, controllers: list[Scripted]
) -> None:
    with load(built / "device", client=workers) as model:
        for Scripted.wants in range(3):
            check(model)
            check(model)
        assert workers.models == [NET.model(cut) for cut in CUTS for _ in range(2)]
        assert model.statistics.splits == dict.fromkeys(CUTS, 2)
        assert model.statistics[:5] == (6, 0, 0, 0, {NET.model("narrow"): "remote"})
        assert model.statistics.choice.why == "why 6"
    (controller,) = controllers
    assert controller.local is False and controller.objective == "latency"
    assert [(f.name, f.sent, f.received, f.device) for f in controller.facts] == [
        (cut, 4 * width, 4 * NET.widths[3], None) for cut, width in zip(CUTS, NET.widths, strict=False)
    ]
    for (what, split, sample), wanted in zip(controller.told, [0, 0, 1, 1, 2, 2], strict=True):
        assert (what, split) == ("took", wanted)
        assert min(sample.device, sample.total, sample.rest) > 0 and sample.queue == sample.compute == 0


def test_what_the_reply_says_of_its_time_is_told(built: Path, workers: Workers, controllers: list[Scripted]) -> None:
    with load(built / "device", client=workers) as model:
        for workers.timings in (Timings(2e-9, 3e-9, 5e-9, 7e-9), Timings(math.nan, math.nan, math.nan, 7e-9)):
            check(model)
    known, unknown = (told[2] for told in controllers[0].told)
    assert known[1:4] == (7e-9, 2e-9, 3e-9) and unknown[1:4] == (7e-9, 0, 0)


def test_a_bundle_tells_what_its_plan_predicts(built: Path, workers: Workers, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(built / "device", tmp_path / "device"))
    said = json.loads((bundle / MANIFEST).read_text())
    said["splits"][1]["predicted"] = {"device": 0.5, "server": 0.25, "rest": 0.0}
    (bundle / MANIFEST).write_text(json.dumps(said))
    with load(bundle, client=workers, split="wide", objective="throughput"):
        ((facts,),) = [controller.facts for controller in Scripted.made]
    assert facts[3:] == (0.5, 0.25) and Scripted.made[0].objective == "throughput"


def test_one_split_by_name(built: Path, workers: Workers) -> None:
    with load(built / "device", client=workers, split="narrow") as model:
        check(model)
        assert workers.models == [NET.model("narrow")] and model.statistics.splits == {"narrow": 1}


def test_wrong_splits_and_objectives(built: Path, workers: Workers, compiled_mlp: Compiled) -> None:
    for options, error in (
        (
            {"split": "narow"},
            r"split 'narow' is not in the bundle; it has 'x', 'wide', 'narrow'; did you mean 'narrow'",
        ),
        ({"split": 3}, r"split 3 is not in the bundle"),
        ({"objective": "speed"}, r"objective 'speed' is not one of 'latency', 'throughput', 'device-time'"),
    ):
        with pytest.raises(InvalidArgument, match=error):
            load(built / "device", client=workers, **options)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match=r"split 'x' of a bundle without splits; compile it with --or-cut"):
        load(compiled_mlp.device, client=workers, split="x")


def test_never_runs_the_whole_model_here(built: Path, workers: Workers) -> None:
    with load(built / "device", client=workers, offload="never") as model:
        check(model)
        assert not workers.calls and model.statistics.local == 1 and model.statistics.choice is None
        assert set(model.statistics.ways.values()) == {"local"}
        with pytest.raises(InvalidArgument, match="offload 'often' is not one of"):
            model.offload = "often"  # type: ignore[assignment]


@pytest.mark.parametrize("mode", ["never", "auto"])
def test_a_sealed_bundle_runs_on_workers_only(built: Path, workers: Workers, mode: Any) -> None:
    with pytest.raises(FailedPrecondition, match=f"offload '{mode}' needs the whole model in the device bundle"):
        load(built / "sealed", client=workers, offload=mode)
    with load(built / "sealed", client=workers) as model:
        check(model)


def test_auto_runs_here_what_the_controller_wants_here(
    built: Path, workers: Workers, controllers: list[Scripted]
) -> None:
    with load(built / "device", client=workers, offload="auto") as model:
        Scripted.wants = [-1, 1, -1]
        for _ in range(3):
            check(model)
        assert model.statistics[:4] == (1, 2, 0, 0) and set(model.statistics.ways.values()) == {"local"}
    assert controllers[0].local is None
    assert [told[:2] for told in controllers[0].told] == [("here", -1), ("took", 1), ("here", -1)]


def test_patience_is_the_controllers_in_auto_and_the_callers_otherwise(built: Path, workers: Workers) -> None:
    for options in ({}, {"offload": "auto"}, {"timeout": 0.1, "offload": "auto"}, {"timeout": 7.0}):
        with load(built / "device", client=workers, **options) as model:  # type: ignore[arg-type]
            check(model)
    assert [call[2] for call in workers.calls] == [None, 0.25, 0.1, 7.0]


@pytest.mark.parametrize("error", [DeadlineExceeded("late"), Unavailable("no broker answered")])
def test_a_miss_is_an_error_in_always_and_computed_here_in_auto(
    built: Path, workers: Workers, controllers: list[Scripted], error: OffloadError
) -> None:
    workers.errors[NET.model("x")] = error
    with load(built / "device", client=workers) as model:
        with pytest.raises(type(error)) as caught:
            model(X)
        assert caught.value is error and model.statistics[:4] == (0, 0, 0, 1)
        model.offload = "auto"
        check(model)
        assert model.statistics[:4] == (0, 0, 1, 1)
    always, auto = controllers
    assert [told[:2] for told in always.told] == [("missed", 0)]
    assert [told[:2] for told in auto.told] == [("missed", 0), ("here", 0)]
    assert len(workers.calls) == 2


@pytest.mark.parametrize(
    "error",
    [
        NotFound("no worker ever announced it"),
        Unavailable("no worker that holds model 'net.x' is there now"),
        FailedPrecondition("no served version of model 'net.x' fits"),
        PermissionDenied("the key is not for it"),
    ],
)
def test_a_split_whose_model_is_refused_is_left_out_for_a_while(
    built: Path,
    workers: Workers,
    error: OffloadError,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = [100.0]
    monkeypatch.setattr(adaptive, "_clock", lambda: clock[0])
    caplog.set_level(logging.INFO)
    workers.errors[NET.model("x")] = error
    with load(built / "device", client=workers) as model:
        for _ in range(3):
            check(model)
        assert workers.models == [NET.model(cut) for cut in ("x", "wide", "wide", "wide")]
        clock[0] += 1.5
        check(model)  # it is asked again
        assert workers.models[4:] == [NET.model("x"), NET.model("wide")]
        workers.errors.clear()
        clock[0] += 2.5
        check(model)
        assert workers.models[6:] == [NET.model("x")]
        assert model.statistics[:4] == (5, 0, 0, 0)
    said = [record.getMessage() for record in caplog.records]
    assert [line for line in said if line.startswith("split 'x' is left out, because its model cannot be used: ")] == [
        said[0]
    ]
    assert [line.partition(":")[0] for line in said[1:]] == [
        "split 'wide' is used",
        "model 'net.x' is served again",
        "split 'x' is used in place of split 'wide'",
    ]


def test_where_all_models_are_refused_the_error_is_raised_or_this_device_computes(
    built: Path, workers: Workers
) -> None:
    workers.error = NotFound("nothing is served")
    with load(built / "device", client=workers) as model:
        with pytest.raises(NotFound, match="nothing is served"):
            model(X)
        assert workers.models == [NET.model(cut) for cut in CUTS]
        with pytest.raises(NotFound):
            model(X)
        assert len(workers.calls) == 4 and model.statistics.failed == 2  # one request each from now on
        model.offload = "auto"
        check(model)
        assert model.statistics.fell_back == 1


def test_errors_that_are_not_the_workers_measure_nothing(
    built: Path, workers: Workers, controllers: list[Scripted]
) -> None:
    with load(built / "device", client=workers, offload="auto") as model:
        for error in (Cancelled("closed"), KeyboardInterrupt(), ZeroDivisionError("a fault")):
            workers.errors[NET.model("x")] = error
            with pytest.raises(type(error)):
                model(X)
        assert model.statistics[:4] == (0, 0, 0, 0)
    assert [told[0] for told in controllers[0].told] == ["abandoned"] * 3


class Submitting(Workers):
    """A client with `submit`, whose replies come when the test wants."""

    def __init__(self, repository: Path) -> None:
        super().__init__(repository)
        self.sent: list[Future[Any]] = []
        self.at_once = True

    def submit(self, model: str, inputs: Mapping[str, Any], **options: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.sent.append(future)
        if self.at_once:
            try:
                future.set_result(self.infer(model, {name: array.copy() for name, array in inputs.items()}, **options))
            except OffloadError as error:
                future.set_exception(error)
        return future


def test_streams_and_submitted_items(built: Path, controllers: list[Scripted]) -> None:
    workers = Submitting(built / "repository")
    with load(built / "device", client=workers, objective="throughput") as model:
        Scripted.wants = [0, 1, 2] * 3
        for found in model.map([X] * 8, depth=3):
            np.testing.assert_allclose(found, Y, atol=1e-5)
        np.testing.assert_allclose(model.submit(X).result(), Y, atol=1e-5)
        assert model.statistics.splits == dict.fromkeys(CUTS, 3)
    assert all(min(sample.device, sample.total, sample.rest) >= 0 for _, _, sample in controllers[0].told)


def test_an_item_that_is_canceled_measures_nothing(built: Path, controllers: list[Scripted]) -> None:
    workers = Submitting(built / "repository")
    workers.at_once = False
    with load(built / "device", client=workers) as model:
        run = model.submit(X)
        eventually(lambda: workers.sent)
        assert run.cancel()
        run.abandon()
        with pytest.raises(CancelledError):
            run.result()
    assert [told[0] for told in controllers[0].told] == ["abandoned"]


def test_each_change_of_split_is_one_line_in_the_log(
    built: Path, workers: Workers, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with load(built / "device", client=workers, offload="auto") as model:
        Scripted.wants = [0, 0, 2, 2, -1]
        for _ in range(5):
            check(model)
        Scripted.wants, Scripted.explores = 1, True
        check(model)
    said = [record.getMessage().split(" is used") for record in caplog.records]
    assert [line[0] for line in said] == ["split 'x'", "split 'narrow'", "the whole model on this device"]
    assert said[1][1].startswith(" in place of split 'x': ")


def test_a_closed_model_and_its_repr(built: Path, workers: Workers) -> None:
    model = load(built / "device", client=workers)
    assert "offloads 'net.x' version latest" in repr(model)
    model.close()
    with pytest.raises(FailedPrecondition, match="the model is closed"):
        model(X)
    assert model.statistics.offloaded == 0


def test_splits_whose_requests_overlap_with_work_of_the_device(tmp_path: Path, controllers: list[Scripted]) -> None:
    file = onnx_models.branches(tmp_path / "m.onnx")
    shape = {"x": (1, 3, 8, 8)}
    cuts = [Cut("features", until="left"), Cut("x")]
    compiled = compile_model(file, inputs=shape, cuts=cuts, name="m", output=tmp_path, with_fallback=True)
    assert f"{compiled.manifest.offloaded[0].symbol}_receive".encode() in contents(compiled.device)
    x = onnx_models.random(*shape["x"])
    right = run_uncut(file, shape, [x])
    submitting = Submitting(tmp_path / "repository")
    for client in (submitting, Workers(tmp_path / "repository")):
        with load(compiled.device, client=client, offload="auto") as model:
            for Scripted.wants in (0, 1, -1, 0):
                for found, wanted in zip(model(x), right, strict=True):
                    np.testing.assert_allclose(found, wanted, atol=1e-5)
            client.error = DeadlineExceeded("late")
            client.errors[compiled.models[0].name] = DeadlineExceeded("late")
            np.testing.assert_allclose(model(x)[0], right[0], atol=1e-5)
            assert model.statistics[:4] == (3, 1, 1, 0)
    for controller in controllers:
        assert [told[0] for told in controller.told] == ["took", "took", "here", "took", "missed", "here"]
        assert all(min(told[2][:2]) > 0 and told[2][4] >= 0 for told in controller.told if told[0] == "took")


def test_requests_belong_to_traces(built: Path) -> None:
    pytest.importorskip("opentelemetry.trace")
    traced: list[bool] = []

    class Traces(Workers):
        def infer(self, model: str, inputs: Mapping[str, Any], **options: Any) -> Mapping[str, Any]:
            traced.append(options.pop("trace"))
            return super().infer(model, inputs, **options)

    with load(built / "device", client=Traces(built / "repository"), trace=True) as model:
        check(model)
    assert traced == [True]
