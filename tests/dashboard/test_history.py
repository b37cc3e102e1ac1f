"""What the dashboard makes of a broker's statuses."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from tests.dashboard.snapshots import model, status, worker
from zmq_offload.dashboard.history import MODEL_STEP, MOST_MODELS, STEP, History
from zmq_offload.dashboard.series import HOUR, Rates, Sample, rates_of, together
from zmq_offload.telemetry.histograms import Buckets


def fed(*statuses: dict[str, Any], step: float = 1.0) -> tuple[History, float]:
    """A history of statuses that came one after the other, and the time of the last."""
    history = History()
    now = 100.0
    for each in statuses:
        now += step
        history.add(each, now)
    return history, now


def states(history: History, now: float) -> dict[str, str]:
    return {view.name: view.state for view in history.view(now).workers}


def test_before_the_first_status_nothing_is_known() -> None:
    view = History().view(5.0)
    assert (view.broker.state, view.points, view.models, view.workers, view.errors, view.slow) == (
        "waiting", [], [], [], [], []
    )  # fmt: skip
    assert view.rates == Rates(0.0, 0.0, None, None, None)


def test_rates_are_differences_of_counts() -> None:
    history, now = fed(
        status(10, served=1000, models=[model(counts=[1000, 0, 0, 0])]),
        status(11, served=1010, failed={"INTERNAL": 2}, queued=4, models=[model(counts=[1000, 10, 0, 0])]),
    )
    view = history.view(now)
    assert view.rates.requests == 10 and view.rates.errors == 2
    assert view.rates.p50 is not None and 0.001 < view.rates.p50 <= 0.01
    assert (view.queued, view.served) == (4, 1010)
    (point,) = view.points
    assert (point.number, point.requests, point.errors, point.queued) == (int(now // STEP), 10, 2, 4)
    (version,) = view.models
    assert (version.rates.requests, version.queued, version.outstanding, version.mean_batch) == (10, 2, 3, 2.0)


def test_a_broker_without_statistics_has_no_latencies() -> None:
    history, now = fed(status(10, served=0, models=[model()]), status(11, served=7, models=[model()]))
    view = history.view(now)
    assert view.rates == Rates(7.0, 0.0, None, None, None)
    assert view.models[0].rates == Rates(0.0, 0.0, None, None, None)
    assert (view.models[0].mean_batch, view.models[0].labels) == (0.0, [])


def test_labels_of_a_version_are_shown() -> None:
    history, now = fed(status(models=[model(labels=["stable"])]))
    assert history.view(now).models[0].labels == ["stable"]


def test_a_broker_that_was_started_again_counts_from_zero() -> None:
    history, now = fed(
        status(500, served=1000, failed={"INTERNAL": 3}, models=[model(counts=[9, 0, 0, 0])]),
        status(
            0.5,
            served=4,
            failed={"INTERNAL": 1},
            models=[model(counts=[4, 0, 0, 0]), model("new", counts=[2, 0, 0, 0])],
        ),
    )
    view = history.view(now)
    assert view.broker.restarts == 1
    assert view.rates.requests == 8 and view.rates.errors == 2
    assert [version.rates.requests for version in view.models] == [8, 4]
    assert {error.code: (error.count, error.hour) for error in view.errors} == {"INTERNAL": (1, 1)}


def test_another_broker_has_no_known_past() -> None:
    history, now = fed(
        status(50, served=5, workers=[worker("a-1")], models=[model(counts=[9, 0, 0, 0])]),
        status(
            9000, served=90000, failed={"INTERNAL": 9}, workers=[worker("b-1")], models=[model(counts=[9, 9, 0, 0])]
        ),
    )
    view = history.view(now)
    assert (view.points, view.broker.restarts) == ([], 0)
    assert states(history, now) == {"b-1": "ready"}
    assert {error.code: (error.count, error.hour) for error in view.errors} == {"INTERNAL": (9, 0)}


def test_a_version_that_is_first_seen_later_brings_no_burst() -> None:
    history, now = fed(status(10), status(11, models=[model(counts=[5000, 0, 0, 0])]))
    assert history.view(now).models[0].rates.requests == 0


def test_bounds_of_latencies_may_change() -> None:
    changed = model(counts=[1, 2, 3, 4])
    changed["statistics"]["total"] = {"bounds": [1.0], "counts": [3, 0], "sum": 1.0}
    history, now = fed(status(10, models=[model(counts=[1, 1, 1, 1])]), status(11, models=[changed]))
    assert history.view(now).rates.p50 == 0.5


def test_latencies_of_several_models_are_one() -> None:
    one, other, strange = Buckets((1.0,), (1, 0), 1.0), Buckets((1.0,), (3, 2), 5.0), Buckets((2.0,), (1, 0), 1.0)
    assert together([None, one, other, strange]) == Buckets((1.0,), (4, 2), 6.0)
    assert together([None, Buckets((1.0,), (0, 0), 0.0)]) is None


def test_no_broker_leaves_what_was_known() -> None:
    history, now = fed(status(10, workers=[worker()]))
    history.missed("no broker answered")
    view = history.view(now + 60)
    assert (view.broker.state, view.broker.message, len(view.workers)) == ("none", "no broker answered", 1)
    history.add({**status(71), "stopping": True}, now + 61)
    assert history.view(now + 61).broker.state == "stopping"
    history.add(status(72), now + 62)
    assert history.view(now + 62).broker.state == "up"


def test_what_happens_now_is_soon_forgotten() -> None:
    history, now = fed(status(10), status(11, served=50))
    assert history.view(now + 4).rates.requests == 50
    assert history.view(now + 6).rates.requests == 0


def test_points_are_kept_for_an_hour() -> None:
    history = History()
    for second in range(4000):
        history.add(status(second, served=second * 10, models=[model(counts=[second, 0, 0, 0])]), float(second))
    view = history.view(3999.0)
    assert len(view.points) == HOUR / STEP and len(view.models[0].points) == HOUR / MODEL_STEP
    assert {point.requests for point in view.points} == {10.0}
    changes = history.view(3999.0, changes=True)
    assert changes.points == view.points[-2:] and changes.models[0].points == view.models[0].points[-2:]
    assert history.view(3999.0 + 2 * HOUR).points == []
    assert len(history.view(3999.0 + HOUR / 2).points) == HOUR / STEP / 2


def test_the_memory_for_models_is_bounded() -> None:
    history = History()
    for second in range(1, 71):
        models = [model(f"m{number}", counts=[second, 0, 0, 0]) for number in range(MOST_MODELS + 5)]
        history.add(status(second, models=models), float(second))
    view = history.view(70.0)
    assert [len(version.points) for version in view.models] == [3] * MOST_MODELS + [1] * 5
    assert {version.rates.requests for version in view.models} == {1.0}
    history.add(status(71, models=[model("other", counts=[1, 0, 0, 0])]), 71.0)
    assert [version.name for version in history.view(71.0).models] == ["other"]


def test_errors_are_counted_by_kind_for_an_hour() -> None:
    history, now = fed(
        status(10, failed={"INTERNAL": 1}),
        status(11, failed={"INTERNAL": 3}),
        {**status(12, failed={"INTERNAL": 3, "NOT_FOUND": 7}), "dropped": {"late": 1, "malformed": 0}},
    )
    view = history.view(now)
    assert [(error.kind, error.code, error.count, error.hour) for error in view.errors] == [
        ("failed", "NOT_FOUND", 7, 7),
        ("failed", "INTERNAL", 3, 2),
        ("dropped", "late", 1, 1),
    ]
    assert {error.hour for error in history.view(now + 2 * HOUR).errors} == {0}


def test_slow_requests_grow_old() -> None:
    slow = {
        "model": "echo", "version": 1, "worker": "w", "ago": 3.0, "queue": 0.1, "compute": 0.2, "total": 0.4,
        "attempts": 1, "status": "ok", "key": "", "more": 1,
    }  # fmt: skip
    history, now = fed(status(10, slow=[slow]))
    (view,) = history.view(now + 2).slow
    assert (view.model, view.ago, view.total) == ("echo", 5.0, 0.4)


def test_a_lost_worker_is_shown_for_minutes() -> None:
    history, now = fed(status(10, workers=[worker("host-1", running=["echo:1"])]), status(11))
    (lost,) = history.view(now + 3).workers
    assert (lost.name, lost.state, lost.running, lost.busy, lost.silent) == ("host-1", "lost", [], None, 4.0)
    assert states(history, now + 298) == {"host-1": "lost"}
    assert states(history, now + 300) == {}


def test_a_worker_that_was_about_to_go_is_not_lost() -> None:
    history, now = fed(status(10, workers=[worker(state="draining")]), status(11))
    assert states(history, now) == {}


def test_a_worker_of_the_same_name_comes_back() -> None:
    history, now = fed(status(10, workers=[worker("edge")]), status(11), status(12, workers=[worker("edge")]))
    (view,) = history.view(now).workers
    assert (view.state, view.replaces) == ("ready", "edge")
    history.add(status(13, workers=[worker("edge")]), now + 1)
    assert history.view(now + 1).workers[0].replaces == "edge"
    assert history.view(now + 301).workers[0].replaces == ""


def test_a_worker_that_its_supervisor_started_again_takes_the_place() -> None:
    before = [worker("host-1", restarts=0), worker("host-2", restarts=0), worker("far-9", restarts=0)]
    history, now = fed(
        status(10, workers=before),
        status(11, workers=before[1:2]),
        status(12, workers=[before[1], worker("host-3", restarts=0)]),
        status(13, workers=[before[1], worker("host-3", restarts=0), worker("host-4", restarts=1)]),
    )
    here = {"host-2": "ready", "host-3": "ready", "host-4": "ready", "far-9": "lost"}
    assert states(history, now) == {**here, "host-1": "lost"}
    assert states(history, now + 6) == here
    assert {view.name: view.replaces for view in history.view(now).workers}["host-4"] == "host-1"


def test_workers_may_share_a_name() -> None:
    history, now = fed(status(10, workers=[worker("w"), worker("w")]), status(11, workers=[worker("w")]))
    assert [view.state for view in history.view(now).workers] == ["ready", "lost"]


def test_the_number_of_lost_workers_is_bounded() -> None:
    history, now = fed(status(10, workers=[worker(f"h{number}") for number in range(150)]), status(11))
    assert len(history.view(now).workers) == 100


def test_the_busy_share_is_that_of_the_last_seconds() -> None:
    history = History()
    shares = []
    for second, busy in enumerate([0.0, 0.0, 0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5, 0.2, 9.0]):
        history.add(status(second + 1, workers=[worker(busy=busy)]), float(second))
        shares.append(history.view(float(second)).workers[0].busy)
    assert shares[0] is None and shares[1] == 0.0 and shares[2] == 0.25
    assert shares[9] == 1.0
    assert shares[10] is None and shares[11] == 1.0
    history, now = fed(status(10, workers=[worker()]), status(11, workers=[worker()]))
    assert history.view(now).workers[0].busy is None


def test_a_view_is_json() -> None:
    history, now = fed(status(10, workers=[worker()]), status(11, served=3, models=[model(counts=[1, 0, 0, 0])]))
    body = msgspec.json.decode(msgspec.json.encode(history.view(now)))
    assert body["points"][0][1] == 3.0 and body["workers"][0]["name"] == "host-1"


def test_no_time_makes_no_rates() -> None:
    assert rates_of([Sample(0.0, 5, 1, None, 0)]) == Rates(0.0, 0.0, None, None, None)


COUNTS = st.integers(0, 1000)


@given(
    st.lists(
        st.tuples(
            st.floats(0, 100), st.floats(0, 1000), COUNTS, COUNTS, st.none() | st.lists(COUNTS, min_size=4, max_size=4)
        ),
        min_size=1,
    )
)
def test_no_counts_make_negative_rates(steps: list[tuple[float, float, int, int, list[int] | None]]) -> None:
    history = History()
    now = 0.0
    for elapsed, uptime, served, failed, counts in steps:
        now += elapsed
        models = [] if counts is None else [model(counts=counts)]
        history.add(status(uptime, served=served, failed={"INTERNAL": failed}, models=models), now)
        view = history.view(now)
        points = [*view.points, *(point for version in view.models for point in version.points)]
        assert all(point.requests >= 0 and point.errors >= 0 and point.queued >= 0 for point in points)
        assert all(value >= 0 for point in points for value in point[3:6] if value is not None)
        assert all(error.hour >= 0 and error.count >= 0 for error in view.errors)
        assert [point.number for point in view.points] == sorted({point.number for point in view.points})
