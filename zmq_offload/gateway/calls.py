"""What every protocol turns a request into, and the fabric as the protocols see it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeAlias, TypeVar

import numpy as np

from zmq_offload.client.results import Timings
from zmq_offload.errors import Internal, OffloadError, PermissionDenied
from zmq_offload.gateway.catalog import Catalog, Indexed
from zmq_offload.gateway.statistics import Statistics
from zmq_offload.net.grants import Grant
from zmq_offload.protocol import limits
from zmq_offload.protocol.packed import Packed
from zmq_offload.protocol.payload import Buffer as Buffer
from zmq_offload.telemetry.traces import context

log = logging.getLogger("gateway")

Buffers: TypeAlias = Sequence[Buffer]
"""Parts of a body or message, sent in order without being joined. They must not change until they are sent."""

Memory: TypeAlias = Callable[[int], memoryview]
"""Gives memory for so many bytes. It stays until nothing refers to it any more."""


def own_memory(nbytes: int) -> memoryview:
    """A `Memory` of this process alone."""
    return np.empty(nbytes, np.uint8).data


Cancel: TypeAlias = Callable[[], None]
"""Takes a request back: a queued one is not run, and its end is not reported. After the end it does nothing."""


class Outputs(NamedTuple):
    """What a model returned. `version` is the one that ran."""

    tensors: Packed
    model: str
    version: int
    timings: Timings


Ended: TypeAlias = "Callable[[Outputs | OffloadError], None]"
"""Is called once with what came of a request, unless the request is canceled before. See `tell`."""

FAILED = "the gateway failed; its log has details"

Answer = TypeVar("Answer")


def tell(ended: Callable[[Answer | OffloadError], None], answer: Answer | OffloadError) -> None:
    """Pass an answer to who waits for it. If that fails (a fault of ours, no memory), tell him so: he waits."""
    try:
        ended(answer)
    except Exception:
        log.exception("an answer cannot be returned")
        with contextlib.suppress(Exception):
            ended(Internal(FAILED))


def check_allowed(model: str, grant: Grant) -> None:
    """Raise PermissionDenied if `grant` is not for a model, whether it is served or not."""
    if not grant.allows(model):
        raise PermissionDenied(f"{grant.name} is not for model {model!r}")


class Call(NamedTuple):
    """A request to run a model, whatever protocol it came in.

    `timeout` is in seconds; None is the gateway's default. `priority` is from -100 to 100, as `Client.infer` takes it.
    The memory of `inputs` must not change before the call ends. `trace` is that of a Request, empty without one.
    `label` stands for a version, and `version` is None with it. `caller` says who asks, empty if nothing is known of
    that. `id` is the client's own name of the request.
    """

    model: str
    version: int | None
    inputs: Packed
    timeout: float | None = None
    priority: int = 0
    trace: bytes = b""
    label: str = ""
    caller: str = ""
    id: str = ""


CALLER = "x-zmq-offload-caller"
"""The header, or metadata, that says for whom a request is: whether a canary gets it is drawn by that."""

LABEL = "x-zmq-offload-label"
"""The header, or metadata, that names a label in protocols that have no place for it."""


def with_headers(call: Call, headers: Mapping[str, str]) -> Call:
    """A call with what its headers, or metadata, say: the trace that it belongs to, for whom it is, and its label.

    A malformed trace counts as none.
    """
    text, caller, label = headers.get("traceparent"), headers.get(CALLER), headers.get(LABEL)
    if caller is not None or label is not None:
        call = call._replace(caller=(caller or "")[: limits.NAME_BYTES], label=call.label or label or "")
    return call if text is None else call._replace(trace=context.parse(text))


class Fabric(Protocol):
    """The broker and its workers, as the protocols see them. All methods belong to the event loop's thread.

    They never raise and never block: what goes wrong is passed to `ended`, which may be called before they return.
    """

    @property
    def statistics(self) -> Statistics:
        """Of the requests that this gateway passed on."""

    @property
    def stopping(self) -> bool:
        """Whether the gateway drains. Then it is not ready, whatever the broker answers."""

    def infer(self, call: Call, grant: Grant, ended: Ended) -> Cancel:
        """Run a model. Ends with PermissionDenied for a model that `grant` is not for."""

    def models(
        self,
        grant: Grant,
        ended: Callable[[Catalog | OffloadError], None],
        name: str | None = None,
        version: int | None = None,
    ) -> Cancel:
        """The served models that `grant` is for.

        An answer of the broker is used again for a moment. If it does not have the model `name` in that version, the
        broker is asked anew.
        """

    def index(self, grant: Grant, ended: Callable[[list[Indexed] | OffloadError], None]) -> Cancel:
        """The versions in the repository that `grant` is for; without a repository, those that workers serve."""

    def load(self, name: str, grant: Grant, ended: Callable[[OffloadError | None], None]) -> Cancel:
        """Take requests for a model again. Fails if model control is off, and for a model that no worker serves, or
        that the repository does not have."""

    def unload(self, name: str, grant: Grant, ended: Callable[[OffloadError | None], None]) -> Cancel:
        """Take no more requests for a model. Fails if model control is off."""
