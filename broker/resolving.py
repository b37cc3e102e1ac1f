"""Which version a request is for, if it names a label or its model has a canary. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from broker.catalog import Catalog
from broker.liveness import LivenessPolicy
from broker.routes import Routes
from broker.scheduler import Scheduler
from broker.state import UNKNOWN, PendingRequest, Wanted
from zmq_offload.errors import Status
from zmq_offload.protocol.messages import LATEST


class Resolver:
    """Follows labels and canaries. `started` is the time at which the broker came up."""

    def __init__(
        self, routes: Routes, scheduler: Scheduler, catalog: Catalog, policy: LivenessPolicy, started: float
    ) -> None:
        self._routes = routes
        self._scheduler = scheduler
        self._catalog = catalog
        self._policy = policy
        self._started = started

    def starting(self, now: float) -> bool:
        """Whether the broker is so new that workers may still announce themselves."""
        return now < self._started + self._policy.worker_grace

    def resolve(self, asked: Wanted, label: str, caller: bytes, now: float) -> Wanted | tuple[Status, str]:
        """Follow a label, or a canary, to the version that a request is for. Returns the error if that is not possible.

        `asked` is what the request says; `caller` draws the canary. A label that is not known may still be announced
        if a worker is to come: until then the version is UNKNOWN.
        """
        model, version, signature = asked
        if label:
            found = self._routes.labeled(model, label)
            if not isinstance(found, int):
                lately = self._catalog.lost_at(model) + self._policy.restart_grace
                return Wanted(model, UNKNOWN) if self.starting(now) or now < lately else found
            wanted = Wanted(model, found)
            if not self._fits(wanted, signature):
                text = f"label {label!r} stands for version {found}, which has another signature than was asked for"
                return Status.FAILED_PRECONDITION, f"model {model!r}: {text}"
            return wanted
        route = self._routes.by_model.get(model)
        if version == LATEST and route is not None and route.trial is not None and route.trial.draws(caller):
            wanted = Wanted(model, route.trial.canary.version)
            if self._scheduler.served(wanted) and self._fits(wanted, signature):
                return wanted
        return asked

    def _fits(self, wanted: Wanted, signature: bytes) -> bool:
        """Whether a version has the signature that was asked for, as far as is known."""
        pool = self._scheduler.pools.get(wanted)
        if not signature or pool is None:
            return True
        return pool.first[0].versions[wanted.model][wanted.version].signature == signature

    def follow(self, request: PendingRequest, now: float) -> None:
        """Find out anew what a request by a label, or for a canary, is for. It is in no queue and at no
        worker. If its label is gone, it stays with the version that it had."""
        if request.asked is not None:
            wanted = self.resolve(request.asked, request.label, request.caller, now)
            if isinstance(wanted, Wanted) and wanted.version != UNKNOWN:
                request.wanted = wanted

    def moved(self, now: float) -> Iterator[tuple[PendingRequest, Wanted | tuple[Status, str]]]:
        """The queued requests whose label stands for another version now, or whose canary is over, with what
        `resolve` finds. The caller may take them out of their queues."""
        for wanted, queue in list(self._scheduler.queues.items()):
            for request in [request for request in queue if request.asked is not None]:
                assert request.asked is not None
                found = self.resolve(request.asked, request.label, request.caller, now)
                if found != wanted:
                    yield request, found
