"""The status of several brokers as that of one."""

from __future__ import annotations

from typing import Any

from broker.status import describe_status
from tests.broker.test_core import Bench, dispatches
from zmq_offload.dashboard.history import History
from zmq_offload.dashboard.together import Together


class Broker(Bench):
    """A broker's core with a worker of two slots."""

    def __init__(self, *, worker: bool = True) -> None:
        super().__init__()
        if worker:
            self.announce(b"W1", slots=2)
        self.number = 0

    def serve(self, count: int = 1) -> None:
        for _ in range(count):
            self.number += 1
            (dispatch,) = dispatches(self.request(self.number))
            self.done(dispatch)

    def hold(self, model: str = "m") -> None:
        self.number += 1
        self.request(self.number, model=model)

    @property
    def status(self) -> dict[str, Any]:
        return describe_status(self.core.ledger, self.now, lambda _: True)


def test_requests_are_added_and_a_worker_of_both_is_one() -> None:
    one, two = Broker(), Broker()
    one.serve(3)
    two.serve(2)
    two.hold()
    one.hold("other")
    two.hold("other")
    together = Together(["a", "b"])
    second = two.status
    second["workers"][0]["gpu"] = {"used_bytes": 5}  # which the worker has not told the first yet
    together.add([one.status, second], 50.0)
    found = together.status(50.0)
    assert found["workers"][0]["gpu"] == {"used_bytes": 5}
    assert found["requests"]["served"] == 5
    assert (found["requests"]["outstanding"], found["requests"]["queued"]) == (3, 2)
    assert [(queue["model"], queue["queued"]) for queue in found["queues"]] == [("other", 2)]
    (worker,) = found["workers"]
    assert (worker["name"], worker["slots"], worker["outstanding"], worker["served"]) == ("W1", 4, 1, 5)
    (model,) = found["models"]
    assert (model["workers"], model["slots"], model["latest"]) == (1, 2, True)
    assert model["statistics"]["requests"] == {"ok": 5}
    assert sum(model["statistics"]["total"]["counts"]) == 5
    assert len(found["slow"]) == 5
    assert [(each["endpoint"], each["served"], each["error"]) for each in found["brokers"]] == [
        ("a", 3, ""),
        ("b", 2, ""),
    ]


def test_a_worker_is_quiet_only_if_it_is_for_all() -> None:
    one, two = Broker(), Broker()
    one.after(3.5)
    two.now = one.now
    together = Together(["a", "b"])
    together.add([one.status, two.status], 1.0)
    assert one.status["workers"][0]["state"] == "quiet"
    assert together.status(1.0)["workers"][0]["state"] == "ready"
    together.add([one.status, one.status], 2.0)
    assert together.status(2.0)["workers"][0]["state"] == "quiet"


def test_counts_go_on_when_a_broker_is_started_again_or_does_not_answer() -> None:
    history, together = History(), Together(["a", "b"])
    one, two = Broker(), Broker()
    one.core.ledger.started -= 100
    one.serve(4)
    one.hold()
    two.serve(5)

    def look(first: dict[str, Any] | str, second: dict[str, Any] | str, now: float) -> dict[str, Any]:
        together.add([first, second], now)
        found = together.status(now)
        history.add(found, now)
        return found

    assert look(one.status, two.status, 200.0)["uptime"] == 100
    gone = look("no broker answers", two.status, 201.0)
    assert (gone["requests"]["served"], gone["requests"]["outstanding"]) == (9, 0)
    assert (gone["brokers"][0]["error"], gone["brokers"][0]["outstanding"]) == ("no broker answers", 0)
    new = Broker()
    new.serve(1)
    again = look(new.status, two.status, 202.0)
    assert again["requests"]["served"] == 10
    assert again["models"][0]["statistics"]["requests"] == {"ok": 10}
    assert again["uptime"] == 102
    view = history.view(202.0)
    assert (view.served, view.broker.restarts) == (10, 0)
    assert view.rates.requests == 0.5, "one since the first look, in two seconds"


def test_a_version_that_no_broker_serves_any_more_is_left_out() -> None:
    one, two = Broker(), Broker(worker=False)
    together = Together(["a", "b", "c"])
    together.add([one.status, two.status, "no broker answers"], 1.0)
    assert len(together.status(1.0)["models"]) == 1
    together.add(["no broker answers", two.status, "no broker answers"], 2.0)
    assert together.status(2.0)["models"] == []
    assert together.status(2.0)["brokers"][2]["served"] == 0


def test_versions_without_statistics() -> None:
    status = Broker().status
    del status["models"][0]["statistics"]
    together = Together(["a", "b"])
    together.add([status, status], 1.0)
    assert "statistics" not in together.status(1.0)["models"][0]
    together.add([status, Broker().status], 2.0)
    assert "statistics" in together.status(2.0)["models"][0]
    together.add(["gone", status], 3.0)
    assert together.status(3.0)["models"][0]["workers"] == 1


def test_clients_of_all_brokers_are_counted() -> None:
    def clients(*listed: tuple[int, str, int]) -> dict[str, Any]:
        return {
            "connected": sum(count for *_, count in listed),
            "sharing": sum(count for process, _, count in listed if process),
            "listed": [
                {
                    "process": process,
                    "address": "127.0.0.1",
                    "transport": "tcp",
                    "connections": count,
                    "shared_memory": {"shares": False, "why": why} if why else {"shares": True},
                }
                for process, why, count in listed
            ],
        }

    one = Broker().status | {"clients": clients((7, "", 1), (0, "switched off", 2))}
    two = Broker().status | {"clients": clients((7, "", 1), (0, "another program", 4))}
    together = Together(["a", "b"])
    together.add([one, two], 1.0)
    found = together.status(1.0)["clients"]
    assert (found["connected"], found["sharing"]) == (8, 2)
    assert [(each["process"], each["connections"]) for each in found["listed"]] == [(7, 2), (0, 2), (0, 4)]
    together.add([one, "no broker answers"], 2.0)
    assert together.status(2.0)["clients"]["connected"] == 3
    together.add([Broker().status, "no broker answers"], 3.0)
    assert together.status(3.0)["clients"]["connected"] == 0
