"""The device's entry: load a device bundle."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from zmq_offload.artifacts.manifest import Manifest
from zmq_offload.client.arguments import check_timeout
from zmq_offload.client.sync import Client
from zmq_offload.common.extras import needs
from zmq_offload.device.adaptive import AUTO
from zmq_offload.device.controller import Objective
from zmq_offload.device.machine import Machines
from zmq_offload.device.offload import Mode
from zmq_offload.device.offloaded_model import OffloadedModel
from zmq_offload.device.remote import InferenceClient
from zmq_offload.errors import InvalidArgument
from zmq_offload.runtime.forks import THREADS
from zmq_offload.runtime.machine import check_tvm_version, load_library

if TYPE_CHECKING:
    from zmq_offload.transports.client import ServerClient

__all__ = ["OffloadedModel", "load"]


def load(
    bundle: str | os.PathLike[str],
    broker: str | Sequence[str] | None = None,
    *,
    server: str | Sequence[str] | None = None,
    client: InferenceClient | None = None,
    timeout: float | None = None,
    offload: Mode = "always",
    trace: bool = False,
    split: str = AUTO,
    objective: Objective = "latency",
) -> OffloadedModel:
    """Load a device bundle, to be called like a function.

    Parameters
    ----------
    bundle : str or path
        The folder that `zmq-offload compile` writes as ``device``.
    broker : str or sequence of str, optional
        The endpoint of the broker that passes requests to workers, or several for failover. The client that connects to
        it is closed with the model.
    server : str or sequence of str, optional
        The URL of a server that has the offloaded parts, such as ``"grpc://edge:8001"`` for Triton, or several for
        failover, also of different kinds; docs/transports.md lists them. ``broker`` is the short form for a broker's
        ``tcp://``. The client that connects to it is closed with the model.
    client : InferenceClient, optional
        A client to use instead, such as `zmq_offload.Client`. It can serve several models, and the caller closes it.
    timeout : float, optional
        Seconds for each offloaded region of each call. Default: the client's timeout.
    offload : {"always", "never", "auto"}, default "always"
        Where the offloaded regions run; see `OffloadedModel.offload`.
    trace : bool, default False
        Whether requests to workers belong to the trace of OpenTelemetry's current span at the time of a call
        (docs/traces.md). A `client` then takes ``trace``, as `zmq_offload.Client` does.
    split : str, default "auto"
        Of an adaptive bundle: the name of the split that each item runs by. ``"auto"``: a controller chooses it for
        each item (docs/splitting.md).
    objective : {"latency", "throughput", "device-time"}, default "latency"
        Of an adaptive bundle: what the controller wants. ``"throughput"`` is for `OffloadedModel.map` and other items
        that overlap.

    Returns
    -------
    OffloadedModel

    Raises
    ------
    FailedPrecondition
        The bundle is missing, damaged, for another CPU, or built by another version of TVM; its fallbacks do not fit
        its regions, or `offload` needs fallbacks that it does not have; or this process is a forked child of one that
        has run a model.
    InvalidArgument
        `bundle` is not a path, not exactly one of `broker`, `server` and `client` is given, or a URL cannot be used; or
        `trace` is given with `server`, or is neither True nor False; `objective` is not one of the three, or the bundle
        has no such split.

    Examples
    --------
    >>> with load("dist/device", "tcp://edge:5555") as model:
    ...     boxes, scores = model(image)
    """
    THREADS.check()
    if not isinstance(bundle, (str, os.PathLike)):
        raise InvalidArgument(f"bundle {bundle!r} is not a path; give the folder of a device bundle")
    folder = Path(bundle)
    manifest = Manifest.read(folder)
    check_tvm_version(folder, manifest.tvm_version)
    library = manifest.check_library(folder)
    manifest.cpu.check(str(library))
    if sum(given is not None for given in (broker, server, client)) != 1:
        raise InvalidArgument("load() needs a broker, a server or a client, and just one of them")
    if not isinstance(trace, bool):
        raise InvalidArgument(f"trace {trace!r:.80} is not True or False; True takes OpenTelemetry's current span")
    if trace and server is not None:
        raise InvalidArgument("trace=True with server; only requests to a broker carry traces, so give a broker")
    if trace:
        with needs("traces"):
            import opentelemetry.trace  # noqa: F401  # not in the first call
    if timeout is not None:
        timeout = check_timeout(timeout)
    if objective not in get_args(Objective):
        raise InvalidArgument(f"objective {objective!r} is not one of {', '.join(map(repr, get_args(Objective)))}")
    if split != AUTO and not manifest.splits:
        raise InvalidArgument(f"split {split!r} of a bundle without splits; compile it with --or-cut, or leave it out")
    module = load_library(library)
    fallbacks = {
        fallback.model: Machines(load_library(path), fallback.inputs)
        for fallback, path in manifest.check_fallback(folder).items()
    }
    make = functools.partial(
        OffloadedModel,
        manifest,
        module,
        timeout=timeout,
        fallbacks=fallbacks,
        offload=offload,
        traced=trace,
        split=split,
        objective=objective,
    )
    if client is not None:
        return make(client)
    own = _connected(broker, server)
    try:
        model = make(own, close=own.close)
        own.belongs_to_another()
        return model
    except BaseException:
        own.close()
        raise


def _connected(broker: str | Sequence[str] | None, server: str | Sequence[str] | None) -> Client | ServerClient:
    if server is None:
        assert broker is not None  # as `load` checks
        return Client(broker)
    from zmq_offload.transports.client import connect  # a device that calls brokers does not need it

    return connect(server)
