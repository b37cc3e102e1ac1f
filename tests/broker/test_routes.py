"""Labels, canaries and bounds that a model's configuration sets, in the broker's core with simulated time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from broker.core import Core
from broker.events import FromClient, FromWorker, ToWorker
from broker.routes import Route
from broker.state import UNKNOWN, Model, Settings
from broker.status import describe_models, describe_status
from tests.broker.test_core import ALICE, BOB, POLICY, Bench, codes, dispatches, replies
from zmq_offload.protocol import limits
from zmq_offload.protocol import messages as wire
from zmq_offload.protocol.payload import decode_body, encode_body
from zmq_offload.protocol.tensors import TensorSpec, signature_of

X = TensorSpec("x", "FP32", (1,))
CANARY: Mapping[str, Any] = {"version": 2, "share": 0.5, "min_requests": 10, "window": 10.0}


@pytest.fixture
def bench() -> Bench:
    bench = Bench()
    bench.now += POLICY.worker_grace + 1  # the broker is not new
    return bench


def serve(
    bench: Bench, peer: bytes, configs: Mapping[int, Mapping[str, Any]], *, slots: int = 4, name: str = "m"
) -> Any:
    """A worker announces versions of a model, each with its configuration. Version 9 has another signature."""
    body = [
        {
            "name": name,
            "version": version,
            "inputs": [X.to_json()] if version == 9 else [],
            "outputs": [],
            "config": config,
        }
        for version, config in configs.items()
    ]
    return bench.handle(FromWorker(peer, wire.Announce(peer.decode(), slots), [encode_body(body)]))


def ask(bench: Bench, number: int = 1, session: bytes = ALICE, **fields: Any) -> Any:
    given = {"version": 0, "budget_us": 60_000_000, "priority": 0, "model": "m", **fields}
    return bench.handle(FromClient(session[:1], wire.Request(session, number, **given), [b"head"]))


def versions(actions: Any) -> list[int]:
    return [d.message.version for d in dispatches(actions) if isinstance(d.message, wire.Dispatch)]


def answer(bench: Bench, dispatch: ToWorker, *, code: str = "", compute_us: int = 1000) -> Any:
    assert isinstance(dispatch.message, wire.Dispatch)
    key = dispatch.message[:3]
    message = wire.Failed(*key, code, "it broke") if code else wire.Done(*key, compute_us)
    return bench.handle(FromWorker(dispatch.peer, message, [] if code else [b"out"]))


def notes(bench: Bench) -> list[str]:
    return [text for _, text in bench.core.ledger.notes.take()]


# --- labels ---------------------------------------------------------------------------------------------------


def test_a_request_by_a_label_goes_to_its_version(bench: Bench) -> None:
    serve(bench, b"W1", {1: {"labels": ["stable", "old"]}, 2: {"labels": ["next"]}})
    assert versions(ask(bench, 1, label="stable")) == [1]
    assert versions(ask(bench, 2, label="next")) == [2]
    assert versions(ask(bench, 3)) == [2]
    assert {model["version"]: model["labels"] for model in models_of(bench)} == {1: ["old", "stable"], 2: ["next"]}


def any_model(name: str) -> bool:
    return True


def models_of(bench: Bench) -> Any:
    """The models of the status."""
    return describe_status(bench.core.ledger, bench.now, any_model)["models"]


def test_the_list_of_models_has_what_was_announced(bench: Bench) -> None:
    cache = {"seconds": 5.0, "build": "sha256:1"}
    serve(bench, b"W1", {1: {"labels": ["a"], "cache": cache}, 2: {}})
    one, two = describe_models(bench.core.ledger, any_model)
    assert (one["config"], "config" in two) == ({"labels": ("a",), "cache": cache}, False)


def test_the_list_of_models_has_what_counts_if_workers_disagree(bench: Bench) -> None:
    old, new = ({"seconds": 5.0, "build": f"sha256:{build}"} for build in (1, 2))
    serve(bench, b"W1", {1: {"cache": old, "canary": CANARY}})
    serve(bench, b"W2", {1: {"cache": new}})
    (one,) = describe_models(bench.core.ledger, any_model)
    config: Any = one["config"]
    assert "cache" not in config, "an answer may be of either build"
    assert config["canary"]["version"] == 2
    serve(bench, b"W1", {1: {"cache": new}})
    (one,) = describe_models(bench.core.ledger, any_model)
    assert one["config"] == {"cache": new}


def test_an_unknown_label_is_refused_with_those_that_exist(bench: Bench) -> None:
    serve(bench, b"W1", {1: {"labels": ["stable", "old"]}})
    (error,) = replies(ask(bench, label="stabel"))
    assert (error.code, error.text) == ("NOT_FOUND", "model 'm' has no label 'stabel'; it has old, stable")
    serve(bench, b"W1", {1: {}})
    (error,) = replies(ask(bench, label="stable"))
    assert error.text == "model 'm' has no label 'stable'; it has no labels"


def test_a_version_and_a_label_together_are_refused(bench: Bench) -> None:
    serve(bench, b"W1", {1: {"labels": ["stable"]}})
    (error,) = replies(ask(bench, label="stable", version=1))
    assert (error.code, error.text) == (
        "INVALID_ARGUMENT",
        "the request names version 1 and label 'stable'; name one of them",
    )


def test_a_label_moves_with_an_announcement_and_queued_requests_follow(bench: Bench) -> None:
    serve(bench, b"W1", {1: {"labels": ["stable"]}, 2: {}}, slots=1)
    (first,) = dispatches(ask(bench, 1, label="stable"))
    assert versions(ask(bench, 2, label="stable")) == []
    serve(bench, b"W1", {1: {}, 2: {"labels": ["stable"]}}, slots=1)
    assert versions(answer(bench, first)) == [2]
    assert any("label 'stable' stands for version 2 now" in text for text in notes(bench))


def test_a_queued_request_of_a_label_that_is_gone_fails(bench: Bench) -> None:
    serve(bench, b"W1", {1: {"labels": ["stable"]}}, slots=1)
    ask(bench, 1)
    ask(bench, 2, label="stable")
    actions = serve(bench, b"W1", {1: {}}, slots=1)
    assert codes(actions) == ["NOT_FOUND"]


def test_a_label_is_looked_up_again_after_a_lost_worker(bench: Bench) -> None:
    serve(bench, b"W1", {1: {"labels": ["stable"]}})
    serve(bench, b"W2", {1: {"labels": ["stable"]}, 2: {}})
    (first,) = dispatches(ask(bench, 1, label="stable"))
    other = b"W2" if first.peer == b"W1" else b"W1"
    serve(bench, other, {1: {}, 2: {"labels": ["stable"]}})
    bench.core.ledger.lose(bench.core.ledger.workers[first.peer], "it died", bench.now)
    assert versions(bench.core.ledger.actions) == [2]


def test_a_label_of_another_signature_than_the_device_has_is_refused(bench: Bench) -> None:
    serve(bench, b"W1", {1: {"labels": ["stable"]}, 9: {"labels": ["next"]}})
    assert versions(ask(bench, 1, label="next", signature=signature_of([X], []))) == [9]
    (error,) = replies(ask(bench, 2, label="stable", signature=signature_of([X], [])))
    assert (error.code, error.text) == (
        "FAILED_PRECONDITION",
        "model 'm': label 'stable' stands for version 1, which has another signature than was asked for",
    )


def test_a_new_broker_waits_for_a_worker_that_knows_the_label() -> None:
    bench = Bench()
    assert replies(ask(bench, 1, label="stable")) == []
    (queued,) = bench.core.ledger.scheduler.queues
    assert queued.version == UNKNOWN
    assert describe_status(bench.core.ledger, bench.now, any_model)["queues"] == [
        {"model": "m", "version": 0, "queued": 1, "bytes": 4}
    ]
    assert versions(serve(bench, b"W1", {1: {}, 2: {"labels": ["stable"]}})) == [2]


def test_a_label_that_no_worker_of_a_new_broker_knows_is_refused_after_a_while() -> None:
    bench = Bench()
    ask(bench, 1, label="stable")
    serve(bench, b"W1", {1: {}})
    assert codes(bench.after(POLICY.worker_grace + 0.1)) == ["NOT_FOUND"]


def test_a_label_waits_for_a_lost_worker_to_come_back(bench: Bench) -> None:
    serve(bench, b"W1", {1: {"labels": ["stable"]}})
    bench.core.ledger.lose(bench.core.ledger.workers[b"W1"], "it died", bench.now)
    assert replies(ask(bench, 1, label="stable")) == []
    assert versions(serve(bench, b"W2", {1: {"labels": ["stable"]}})) == [1]


def test_a_label_moves_when_most_workers_say_so(bench: Bench) -> None:
    for peer in (b"W1", b"W2", b"W3", b"W4"):
        serve(bench, peer, {1: {"labels": ["stable"]}, 2: {}})
    for peer, stands_for in ((b"W1", 1), (b"W2", 1), (b"W3", 2), (b"W4", 2)):
        serve(bench, peer, {1: {}, 2: {"labels": ["stable"]}})
        assert versions(ask(bench, peer[1], label="stable")) == [stands_for], "until then few serve the other version"


def test_labels_and_bounds_are_those_of_the_workers_that_are_there(bench: Bench) -> None:
    ledger = bench.core.ledger
    serve(bench, b"W1", {1: {"labels": ["stable"], "max_queued": 1}, 2: {"max_queued": 1}})
    serve(bench, b"W2", {1: {"labels": ["stable"], "max_queued": 1}, 2: {"max_queued": 1}})
    serve(bench, b"W3", {1: {}, 2: {"labels": ["stable", "own"]}})
    assert ledger.routes.by_model["m"].labels == {"stable": 1, "own": 2}
    ledger.lose(ledger.workers[b"W1"], "it died", bench.now)
    assert ledger.routes.by_model["m"].labels["stable"] == 1, "of equals, what was before"
    bench.handle(FromWorker(b"W2", wire.Goodbye(), []))
    assert ledger.routes.by_model["m"].labels == {"stable": 2, "own": 2}
    assert ledger.routes.by_model["m"].settings.max_queued is None
    ledger.lose(ledger.workers[b"W3"], "it died", bench.now)
    assert ledger.routes.by_model["m"].labels == {"stable": 2, "own": 2}, "it may come back, and requests wait for it"
    serve(bench, b"W4", {1: {}, 2: {}})
    assert "m" not in ledger.routes.by_model


def test_what_as_many_say_as_the_other_stays_as_it_was(bench: Bench) -> None:
    ledger = bench.core.ledger
    serve(bench, b"W1", {1: {"priority": 5}})
    for peer, priority in ((b"W2", 7), (b"W3", 9)):
        serve(bench, peer, {1: {"priority": priority}})
        assert ledger.routes.by_model["m"].settings.priority == 5
    ledger.lose(ledger.workers[b"W1"], "it died", bench.now)
    assert ledger.routes.by_model["m"].settings.priority == 9, "the highest"
    serve(bench, b"W3", {1: {}})
    serve(bench, b"W2", {1: {}})
    assert "m" not in ledger.routes.by_model


def test_a_returned_canary_stays_returned_while_a_few_workers_do_not_know_it(bench: Bench) -> None:
    for peer in (b"W1", b"W2", b"W3"):
        serve(bench, peer, {1: {"canary": CANARY}, 2: {"canary": CANARY}})
    trial = bench.core.ledger.routes.by_model["m"].trial
    assert trial is not None
    trial.returned = "it was slow"
    serve(bench, b"W1", {1: {}, 2: {}})  # it reads another file
    serve(bench, b"W1", {1: {"canary": CANARY}, 2: {"canary": CANARY}})
    assert bench.core.ledger.routes.by_model["m"].trial is trial
    for peer in (b"W1", b"W2"):
        serve(bench, peer, {1: {}, 2: {}})
    assert "m" not in bench.core.ledger.routes.by_model
    for peer in (b"W1", b"W2"):
        serve(bench, peer, {1: {"canary": CANARY}, 2: {"canary": CANARY}})
    again = bench.core.ledger.routes.by_model["m"].trial
    assert again is not None and not again.returned


def returned_by(actions: Any) -> dict[bytes, Any]:
    """The workers that are told of a returned canary, and what they are told."""
    told = [a for a in actions if isinstance(a, ToWorker) and isinstance(a.message, wire.Returned)]
    return {action.peer: decode_body(action.payload, "a Returned") for action in told}


def fail(bench: Bench) -> Any:
    """Let the canary fail; the actions of the last failure."""
    caller, actions = next(callers_of(bench, True)), []
    for number in range(1, 11):
        bench.now += 0.5
        bench.core.ledger.workers[b"W1"].heard_at = bench.now
        (held,) = dispatches(ask(bench, number, caller=caller))
        actions = answer(bench, held, code="INTERNAL")
    return actions


def test_workers_are_told_of_a_returned_canary_and_tell_brokers_that_start_anew(bench: Bench) -> None:
    plain: dict[int, dict[str, Any]] = {1: {"canary": CANARY}, 2: {"canary": CANARY}}
    serve(bench, b"W1", plain)
    told = returned_by(fail(bench))
    assert told.keys() == {b"W1"}
    assert told[b"W1"]["canary"]["version"] == 2 and told[b"W1"]["text"].startswith("10 of its 10 requests failed")
    assert returned_by(serve(bench, b"W2", plain)).keys() == {b"W2"}, "a new one is told, too"
    knowing = {version: {**config, "returned": told[b"W1"]["text"]} for version, config in plain.items()}
    assert not returned_by(serve(bench, b"W1", knowing))

    again = Bench()
    serve(again, b"W3", plain)  # a worker that is as new as the broker
    serve(again, b"W1", knowing)
    (trial,) = [route.trial for route in again.core.ledger.routes.by_model.values()]
    assert trial is not None and not trial.returned, "half of them is not most"
    assert returned_by(serve(again, b"W2", knowing)) == {}
    assert trial.returned == told[b"W1"]["text"]
    assert any("stays without a share, as its workers know: 10 of its 10" in text for text in notes(again))
    assert versions(ask(again, 1, caller=next(map(str, range(9))))) == [1]
    assert returned_by(serve(again, b"W3", plain)).keys() == {b"W3"}


def test_a_canary_that_failed_elsewhere_is_tried_again_when_most_have_forgotten_it(bench: Bench) -> None:
    plain: dict[int, dict[str, Any]] = {1: {"canary": CANARY}, 2: {"canary": CANARY}}
    knowing = {version: {**config, "returned": "it failed"} for version, config in plain.items()}
    for peer in (b"W1", b"W2", b"W3"):
        serve(bench, peer, knowing)
    for config in ({1: {}, 2: {}}, plain):
        for peer in (b"W1", b"W2"):  # W3 loads a version, and does not look at the file
            serve(bench, peer, config)
    trial = bench.core.ledger.routes.by_model["m"].trial
    assert trial is not None and not trial.returned


def test_a_canary_that_takes_all_workers_down_is_still_counted(bench: Bench) -> None:
    serve(bench, b"W1", {1: {"canary": CANARY}, 2: {"canary": CANARY}})
    trial = bench.core.ledger.routes.by_model["m"].trial
    bench.core.ledger.lose(bench.core.ledger.workers[b"W1"], "it crashed", bench.now)
    serve(bench, b"W2", {1: {"canary": CANARY}, 2: {"canary": CANARY}})
    assert trial is not None and bench.core.ledger.routes.by_model["m"].trial is trial


# --- canaries -------------------------------------------------------------------------------------------------


def callers_of(bench: Bench, canary: bool) -> Iterator[str]:
    """Callers whose requests go to the canary, or not."""
    trial = bench.core.ledger.routes.by_model["m"].trial
    assert trial is not None
    return (name for name in map(str, range(10_000)) if trial.draws(name.encode()) is canary)


def test_a_canary_gets_its_share_and_a_caller_stays(bench: Bench) -> None:
    serve(bench, b"W1", {1: {"canary": CANARY}, 2: {"canary": CANARY}}, slots=64)
    drawn = {str(n): versions(ask(bench, n, caller=str(n))) for n in range(1, 41)}
    assert 8 < sum(found == [2] for found in drawn.values()) < 32
    for name, found in drawn.items():
        if len(bench.core.ledger.workers[b"W1"].held) < 60:
            assert versions(ask(bench, 100 + int(name), caller=name)) == found


def test_without_a_caller_the_client_is_drawn(bench: Bench) -> None:
    serve(bench, b"W1", {1: {"canary": CANARY}, 2: {"canary": CANARY}}, slots=64)
    for session in (ALICE, BOB):
        assert len({versions(ask(bench, number, session))[0] for number in range(1, 9)}) == 1


def test_a_canary_does_not_become_the_latest_until_it_is_none(bench: Bench) -> None:
    serve(bench, b"W1", {1: {"canary": {**CANARY, "share": 0.0}}, 2: {"canary": {**CANARY, "share": 0.0}}})
    assert versions(ask(bench, 1)) == [1]
    assert versions(ask(bench, 2, version=2)) == [2]
    assert not any("is not the latest yet" in text for text in notes(bench))
    serve(bench, b"W1", {1: {}, 2: {}})
    assert versions(ask(bench, 3)) == [2]
    assert any("there is no canary any more" in text for text in notes(bench))


def test_a_canary_without_another_version_is_served(bench: Bench) -> None:
    serve(bench, b"W1", {2: {"canary": {**CANARY, "share": 0.0}}})
    assert versions(ask(bench, 1)) == [2]


def test_a_device_gets_only_a_canary_that_fits_it(bench: Bench) -> None:
    canary = {**CANARY, "version": 9, "share": 1.0}
    serve(bench, b"W1", {1: {"canary": canary}, 9: {"canary": canary}})
    assert versions(ask(bench, 1, signature=signature_of([], []))) == [1]
    assert versions(ask(bench, 2)) == [9]


def test_a_canary_that_fails_is_returned_and_its_queue_goes_back(bench: Bench) -> None:
    serve(bench, b"W1", {1: {"canary": CANARY}}, slots=1)
    serve(bench, b"W2", {2: {"canary": CANARY}}, slots=1)
    caller = next(callers_of(bench, True))
    (held,) = dispatches(ask(bench, 1, caller=caller))
    ask(bench, 2, caller=caller)  # it waits for the one slot of the canary
    for number in range(3, 12):
        ask(bench, number, caller=caller)
        bench.now += 0.5
        (held,) = dispatches(answer(bench, held, code="INTERNAL"))
        assert held.peer == b"W2"
    bench.now += 0.5
    bench.handle(FromWorker(b"W1", wire.Heartbeat(), []))
    actions = answer(bench, held, code="INTERNAL")
    assert {dispatch.peer for dispatch in dispatches(actions)} == {b"W1"}
    assert bench.core.ledger.counts["canary_returns"] == 1
    (text,) = [text for text in notes(bench) if "is no canary any more" in text]
    assert "10 of its 10 requests failed (100.0%)" in text
    assert versions(ask(bench, 100, caller=caller)) == []  # it waits for version 1
    (canary,) = [model for model in models_of(bench) if "canary" in model]
    assert (canary["version"], canary["canary"]["requests"]) == (2, 10)
    assert canary["canary"]["returned"].startswith("10 of its 10")


def test_a_returned_canary_stays_returned_until_its_configuration_changes(bench: Bench) -> None:
    serve(bench, b"W1", {1: {"canary": CANARY}, 2: {"canary": CANARY}}, slots=4)
    caller = next(callers_of(bench, True))
    for number in range(1, 11):
        bench.now += 0.5
        (held,) = dispatches(ask(bench, number, caller=caller))
        answer(bench, held, code="INTERNAL")
    serve(bench, b"W1", {1: {"canary": CANARY}, 2: {"canary": CANARY}}, slots=4)
    assert versions(ask(bench, 20, caller=caller)) == [1]
    again = {**CANARY, "share": 0.6}
    serve(bench, b"W1", {1: {"canary": again}, 2: {"canary": again}}, slots=4)
    assert versions(ask(bench, 21, caller=caller)) == [2]


def test_a_canary_that_lost_its_workers_gets_nothing_and_its_requests_go_on(bench: Bench) -> None:
    serve(bench, b"W1", {1: {"canary": CANARY}}, slots=4)
    serve(bench, b"W2", {2: {"canary": CANARY}}, slots=1)
    caller = next(callers_of(bench, True))
    ask(bench, 1, caller=caller)
    ask(bench, 2, caller=caller)
    ledger = bench.core.ledger
    ledger.lose(ledger.workers[b"W2"], "it died", bench.now)
    assert versions(bench.core.take()) == [1, 1]
    assert versions(ask(bench, 3, caller=caller)) == [1]


def test_requests_of_the_latest_version_are_what_a_canary_is_compared_with(bench: Bench) -> None:
    serve(bench, b"W1", {1: {"canary": CANARY}, 2: {"canary": CANARY}}, slots=4)
    own, others = next(callers_of(bench, True)), next(callers_of(bench, False))
    for number in range(1, 41, 2):
        bench.now += 0.2
        for at, caller, compute_us in ((number, own, 30_000), (number + 1, others, 10_000)):
            (held,) = dispatches(ask(bench, at, caller=caller))
            answer(bench, held, compute_us=compute_us)
    (text,) = [text for text in notes(bench) if "is no canary any more" in text]
    assert "at most 1.5 times that is allowed (latency_ratio)" in text


def test_requests_of_a_canary_wait_for_any_worker_if_all_are_lost(bench: Bench) -> None:
    serve(bench, b"W1", {1: {"canary": CANARY}}, slots=1)
    serve(bench, b"W2", {2: {"canary": CANARY}}, slots=1)
    caller = next(callers_of(bench, True))
    for number in (1, 2):
        ask(bench, number, caller=caller)
    for peer in (b"W1", b"W2"):
        bench.core.ledger.lose(bench.core.ledger.workers[peer], "it died", bench.now)
    assert len(versions(serve(bench, b"W3", {1: {}}, slots=2))) == 2


def test_a_lost_request_of_a_label_that_is_gone_keeps_its_version(bench: Bench) -> None:
    serve(bench, b"W1", {1: {"labels": ["stable"]}})
    (first,) = dispatches(ask(bench, 1, label="stable"))
    serve(bench, b"W2", {1: {}})
    bench.core.ledger.lose(bench.core.ledger.workers[first.peer], "it died", bench.now)
    assert versions(bench.core.ledger.actions) == [1]


# --- bounds ---------------------------------------------------------------------------------------------------


def test_the_time_of_a_request_is_bounded(bench: Bench) -> None:
    serve(bench, b"W1", {1: {"timeout_us": 2_000_000}})
    (held,) = dispatches(ask(bench, 1))
    assert isinstance(held.message, wire.Dispatch) and held.message.budget_us == 2_000_000
    (held,) = dispatches(ask(bench, 2, budget_us=1_000_000))
    assert isinstance(held.message, wire.Dispatch) and held.message.budget_us == 1_000_000


def test_the_priority_of_a_model_is_added(bench: Bench) -> None:
    serve(bench, b"W1", {1: {"priority": 60}}, slots=1)
    for number, priority in ((1, 0), (2, 0), (3, 60), (4, -100)):
        ask(bench, number, priority=priority)
    requests = bench.core.ledger.requests
    assert [request.priority for request in requests.values()] == [60, 60, limits.PRIORITY, -40]


def test_the_queue_of_a_model_is_bounded(bench: Bench) -> None:
    serve(bench, b"W1", {1: {"max_queued": 2}}, slots=1)
    assert [codes(ask(bench, number)) for number in range(1, 5)] == [[], [], [], ["RESOURCE_EXHAUSTED"]]


def test_a_configuration_that_is_gone_counts_no_more_and_models_are_bounded(bench: Bench) -> None:
    routes = bench.core.ledger.routes
    serve(bench, b"W1", {1: {"max_queued": 2}})
    assert list(routes.by_model) == ["m"]
    serve(bench, b"W1", {1: {}})
    assert routes.by_model == {}
    for number in range(limits.BODY_ITEMS + 5):
        routes.by_model[str(number)] = Route(Settings())
    serve(bench, b"W1", {1: {"max_queued": 2}})
    assert "m" in routes.by_model and "0" not in routes.by_model
    many = {(f"served {n}", 1): Model({}, b"", (), Settings(priority=1)) for n in range(limits.BODY_ITEMS + 9)}  # type: ignore[typeddict-item]
    routes.announced(b"W2", many)
    assert routes.by_model.keys() == {"m", *(name for name, _ in many)}, "models that are served are kept"


@pytest.mark.parametrize(
    "config",
    [
        7,
        {"labels": "stable"},
        {"labels": [""]},
        {"labels": ["a b"]},
        {"labels": ["x"] * 65},
        {"timeout_us": 0},
        {"priority": 101},
        {"canary": {}},
        {"canary": {"version": 1, "share": 2.0}},
        {"cache": {"seconds": -1}},
    ],
)
def test_a_wrong_configuration_in_an_announcement_is_refused(bench: Bench, config: Any) -> None:
    actions = serve(bench, b"W1", {1: config})
    (error,) = [a.message for a in actions if isinstance(a, ToWorker) and isinstance(a.message, wire.Error)]
    assert error.code == "INVALID_ARGUMENT" and "announced model 'm': its config cannot be read" in error.text
    assert isinstance(bench.core, Core) and not bench.core.ledger.workers


def test_keys_of_a_configuration_that_a_broker_does_not_know_are_left_out(bench: Bench) -> None:
    serve(bench, b"W1", {1: {"labels": ["stable"], "of_a_later_release": 1}})
    assert versions(ask(bench, 1, label="stable")) == [1]
