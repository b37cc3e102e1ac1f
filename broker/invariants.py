"""What must hold between any two events, recomputed from scratch. For tests and for a person who suspects the core."""

from __future__ import annotations

from broker.core import Core


def validate(core: Core) -> None:
    """Raises AssertionError naming the first thing that does not hold."""
    scheduler = core.scheduler
    queued = [request for queue in scheduler.queues.values() for request in queue]

    # Every request is in exactly one place: one queue or one worker's hands.
    assert len(queued) == len(set(queued)) == scheduler.queued, "queued requests are counted wrong"
    assert sum(r.nbytes for r in queued) == scheduler.queued_bytes, "queued bytes are counted wrong"
    for request in queued:
        assert core.requests.get(request.key) is request, f"{request.key} queues but was answered"
        assert request.worker is None, f"{request.key} queues and is held"
    for key, request in core.requests.items():
        assert key == request.key
        assert key in core._timers, f"{key} has no deadline"
        if request.worker is None:
            assert scheduler.holds(request), f"{key} is nowhere"
        else:
            worker = request.worker
            assert core.workers.get(worker.peer) is worker, f"{key} is held by a worker that is gone"
            assert worker.held.get((key, request.attempt)) is request, f"{key} is held by nobody"

    # Bounds.
    policy = core.policy
    for worker in core.workers.values():
        assert len(worker.held) <= worker.slots, f"{worker.name} holds more than its slots"
        assert worker.peer in core._timers, f"{worker.name} is not watched"
    assert all(len(queue) for queue in scheduler.queues.values()), "an empty queue is kept"
    # Requests that came back from a lost worker queue again without being refused, hence the allowance.
    allowance = sum(request.attempt > 0 for request in queued)
    assert scheduler.queued <= policy.max_queued + allowance, "more requests queue than may"

    # The index of who serves what agrees with the workers, and no worker idles while a request for it waits.
    holders = {
        (model, worker.peer) for worker in core.workers.values() if not worker.draining for model in worker.models
    }
    indexed = {(model, peer) for model, workers in scheduler.holders.items() for peer in workers}
    assert indexed == holders, "the index of models is wrong"
    for model, version in scheduler.queues:
        best = scheduler.choose(model, version)
        assert best is None, f"{best and best.name} is free while a request for {model} waits"
