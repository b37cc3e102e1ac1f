"""Invariants of the broker, which hold between any two events. They are recomputed from scratch, for tests."""

from __future__ import annotations

from collections import Counter

from broker import status
from broker.core import Core
from broker.ledger import LOOK, STOP, Ledger, Subject
from broker.lifecycle import RequestState, WorkerState
from broker.queues import FairQueue, Shares
from broker.state import PendingRequest, Wanted, Worker
from broker.statistics import OK


def validate(core: Core) -> None:
    """Raise AssertionError for the first invariant that does not hold."""
    ledger = core.ledger
    queued = [request for queue in ledger.scheduler.queues.values() for request in queue]
    _validate_requests(ledger, queued)
    _validate_workers(ledger)
    _validate_queues(ledger, queued)
    _validate_models(ledger)
    _validate_routes(ledger, queued)
    subjects: tuple[Subject, ...] = (*ledger.requests, *ledger.workers, STOP, LOOK)
    timed = sum(subject in ledger.timers for subject in subjects)
    assert len(ledger.timers) == timed, "a timer is left of what is gone"


def validate_statistics(core: Core) -> None:
    """Raise AssertionError if the counts by version are not those of all requests. This takes longer."""
    ledger = core.ledger
    counts, statistics = ledger.counts, ledger.statistics
    by_status = Counter(statistics.unplaced)
    for runs, version in statistics.versions.items():
        by_status.update(version.requests)
        served = version.requests[OK]
        for times in (version.queue, version.compute, version.total):
            assert sum(times.counts) == served, f"{runs}: its histograms have other requests than its counts"
        assert sum(version.batch.counts) <= served, f"{runs} has more batches than requests"
    failed = {name.removeprefix("failed."): n for name, n in counts.items() if name.startswith("failed.")}
    assert +by_status == +Counter({OK: ledger.served, **failed}), "statistics and counts are not the same"
    waiting_now, held_now = status.waiting(ledger), status.holding(ledger)
    assert waiting_now.total() == ledger.scheduler.queued, "the queued requests of all versions are not all"
    assert waiting_now.total() + held_now.total() == len(ledger.requests), "a request is neither queued nor held"


def _validate_requests(ledger: Ledger, queued: list[PendingRequest]) -> None:
    """Every request is in exactly one place, and the counts know of each what became of it."""
    assert len(queued) == len(set(queued)), "a request queues twice"
    for request in queued:
        assert ledger.requests.get(request.key) is request, f"{request.key} queues but was answered"
        assert request.state is RequestState.QUEUED, f"{request.key} queues but is {request.state.value}"
    for key, request in ledger.requests.items():
        assert key == request.key
        assert key in ledger.timers or request.deadline >= ledger.deadlines.first, f"{key} has no deadline"
        assert request.is_timed or key not in ledger.timers, f"{key} has a timer without knowing"
        if request.state is RequestState.QUEUED:
            assert request.worker is None, f"{key} queues and is held"
            assert ledger.scheduler.holds(request), f"{key} is neither queued nor held"
        else:
            assert request.state is RequestState.HELD, f"{key} is {request.state.value}"
            worker = request.worker
            assert worker is not None and ledger.workers.get(worker.peer) is worker, f"{key}: its worker is gone"
            assert worker.held.get((*key, request.attempt)) is request, f"{key} is not held by its worker"
        assert len(request.lost) < ledger.policy.max_attempts, f"{key} should have been given up"
    tracing = ledger.tracing
    traced = {key for key, request in ledger.requests.items() if request.trace}
    assert tracing.steps.keys() == traced and not tracing.rows, "steps are kept of a request that ended"
    counts, statistics = ledger.counts, ledger.statistics
    ended = ledger.served + sum(count for name, count in counts.items() if name.startswith("failed."))
    assert ledger.accepted == ended + len(ledger.requests), "a request was lost, or answered twice"
    by_version = sum(sum(version.total.counts) + version.failed.total() for version in statistics.versions.values())
    assert by_version + statistics.unplaced.total() == ended, "a request is not counted by its version, or twice"


def _validate_workers(ledger: Ledger) -> None:
    for peer, worker in ledger.workers.items():
        assert peer == worker.peer
        assert worker.peer in ledger.timers, f"{worker.name} is not watched"
        assert worker.state is not WorkerState.GONE, f"{worker.name} is gone"
        assert len(worker.held) <= max(worker.slots, worker.most_slots), f"{worker.name} holds more than its slots"
        assert worker.nbytes == sum(request.nbytes for request in worker.held.values()), f"{worker.name}: its bytes"
        for (*key, attempt), request in worker.held.items():
            assert tuple(key) == request.key
            assert 1 <= attempt <= request.attempt, f"{key}: attempt {attempt} was never made"
            wanted = ledger.awaits(worker, request, attempt)
            assert wanted <= (request.state is RequestState.HELD), f"{key} is held but {request.state.value}"


def _validate_queues(ledger: Ledger, queued: list[PendingRequest]) -> None:
    scheduler, bounds = ledger.scheduler, ledger.queue_limits
    _validate_shares(scheduler.shares, queued)
    for wanted, queue in scheduler.queues.items():
        assert len(queue), "an empty queue is kept"
        assert all(request.wanted == wanted for request in queue)
        _validate_shares(queue.shares, list(queue))
        _validate_turns(queue)
        assert queue.longest >= max(request.longest for request in queue)
        pool = scheduler.pools.get(wanted)
        for request in queue:
            best = None if wanted in scheduler.mixed else scheduler.choose(wanted, request.longest, 0.0)
            assert best is None, f"{best and best.name} is free while a request for {wanted} waits"
            assert pool is None or request.longest <= pool.takes, f"{request.key} waits, and no worker takes its frames"
        if pool is not None and pool.mixed and LOOK not in ledger.timers:
            able = [w for w in pool.first if w.max_frame_bytes >= request.longest]
            assert not any(w.free > 0 for w in able), f"a request for {wanted} waits, and nobody looks again"
        assert queue.unserved is not scheduler.served(wanted), f"{wanted} is served and unserved, or neither"
        # Requests that came back from a lost worker queue again without being refused.
        again = sum(request.attempt > 0 for request in queue)
        assert len(queue) - again <= bounds.max_queued_per_model, f"more requests wait for {wanted} than may"
    new = [request for request in queued if request.attempt == 0]
    assert len(new) <= bounds.max_queued, "more requests wait than may"
    assert sum(request.nbytes for request in new) <= bounds.max_queued_bytes, "more bytes wait than may"


def _validate_shares(shares: Shares, requests: list[PendingRequest]) -> None:
    by_owner: dict[bytes, tuple[int, int]] = {}
    for request in requests:
        count, nbytes = by_owner.get(request.owner, (0, 0))
        by_owner[request.owner] = count + 1, nbytes + request.nbytes
    assert shares.by_owner == by_owner, "shares are counted wrong"
    total = len(requests), sum(request.nbytes for request in requests)
    assert (shares.count, shares.nbytes) == total, "a queue's totals are wrong"


def _validate_turns(queue: FairQueue) -> None:
    assert queue.priorities == sorted(queue.levels)
    for priority, level in queue.levels.items():
        assert level, "an empty priority is kept"
        assert all(line for line in level.values()), "an empty line is kept"
        turns = [line.turn for line in level.values()]
        assert turns == sorted(turns), "clients do not take turns"
        assert all(r.priority == priority and r.owner == owner for owner, ln in level.items() for r in ln.values())


def _validate_routes(ledger: Ledger, queued: list[PendingRequest]) -> None:
    """Queued requests wait for what their labels stand for now, and for canaries that have a share."""
    scheduler, routes = ledger.scheduler, ledger.routes
    assert scheduler.canaries == routes.canaries(), "the scheduler has other canaries"
    for name, canary in scheduler.canaries.items():
        held = {version for worker in scheduler.holders.get(name, {}).values() for version in worker.versions[name]}
        latest = scheduler.pools.get(Wanted(name))
        assert latest is None or latest.version != canary or held == {canary}, f"{name}: a canary is the latest"
    for name, workers in scheduler.holders.items():
        votes: dict[str, Counter[int]] = {}
        for worker in workers.values():
            said = {label: v for v, model in sorted(worker.versions[name].items()) for label in model.settings.labels}
            for label, number in said.items():
                votes.setdefault(label, Counter())[number] += 1
        labels = routes.by_model[name].labels if name in routes.by_model else {}
        assert labels.keys() == votes.keys(), f"{name}: its labels are not those that present workers announce"
        for label, stands_for in labels.items():
            assert votes[label][stands_for] == max(votes[label].values()), f"{name}: most say otherwise of {label!r}"
    for request in queued:
        asked, wanted = request.asked, request.wanted
        if request.label:
            version = routes.labeled(wanted.model, request.label)
            moved = isinstance(version, int) and version != wanted.version
            assert not moved, f"{request.key} waits for version {wanted.version}, its label stands for {version}"
        elif asked is not None and wanted != asked:
            route = routes.by_model.get(wanted.model)
            assert route is not None and route.trial is not None, f"{request.key} waits for a canary that is gone"
            assert route.trial.canary.version == wanted.version, f"{request.key} waits for another canary"
            assert route.trial.draws(request.caller), f"{request.key} waits for a canary that was returned"
            assert scheduler.served(wanted), f"{request.key} waits for a canary without workers"


def _validate_models(ledger: Ledger) -> None:
    """The index of who serves what agrees with the workers."""
    scheduler = ledger.scheduler
    holders: dict[str, dict[bytes, Worker]] = {}
    asked: dict[Wanted, set[bytes]] = {}
    for peer, worker in ledger.workers.items():
        if worker.state is not WorkerState.DRAINING:
            for (name, _), model in worker.models.items():
                holders.setdefault(name, {})[peer] = worker
                for wanted in model.satisfies:
                    asked.setdefault(wanted, set()).add(peer)
    assert scheduler.holders == holders, "the index of models is wrong"
    assert scheduler.pools.keys() == asked.keys(), "the index of what may be asked for is wrong"
    for wanted, pool in scheduler.pools.items():
        # Most of the time of ten thousand simulated histories goes here, so nothing is looked up twice.
        latest, first, runs = (wanted.model, pool.version), pool.first, pool.runs
        workers = [*first, *pool.helpers]
        assert {worker.peer for worker in workers} == runs.keys() <= asked[wanted], f"{wanted}: its workers"
        assert len(workers) == len(runs), f"{wanted}: a worker is there twice"
        assert pool.takes == max([worker.max_frame_bytes for worker in workers]), f"{wanted}: frames"
        assert first, f"{wanted}: no worker has the adopted version"
        adopted = {worker.models[latest].signature for worker in first if latest in worker.models}
        assert len(adopted) == 1, f"{wanted}: no worker has version {pool.version}"
        for place, worker in enumerate(workers):
            models, version = worker.models, runs[worker.peer]
            model = models[wanted.model, version]
            assert wanted in model.satisfies, f"{wanted}: {worker.name} runs version {version}"
            assert model.signature in adopted, f"{wanted}: versions of two signatures are mixed"
            assert (place < len(first)) is (version >= pool.version)
            assert version == pool.version or latest not in models
