"""The device's entry: load a device bundle."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from zmq_offload.artifacts.manifest import Manifest
from zmq_offload.client.arguments import check_timeout
from zmq_offload.client.sync import Client
from zmq_offload.device.machine import Machines
from zmq_offload.device.offload import Mode
from zmq_offload.device.offloaded_model import OffloadedModel
from zmq_offload.device.remote import InferenceClient
from zmq_offload.errors import InvalidArgument
from zmq_offload.runtime.forks import THREADS
from zmq_offload.runtime.machine import check_tvm_version, load_library

__all__ = ["OffloadedModel", "load"]


def load(
    bundle: str | os.PathLike[str],
    broker: str | Sequence[str] | None = None,
    *,
    client: InferenceClient | None = None,
    timeout: float | None = None,
    offload: Mode = "always",
) -> OffloadedModel:
    """Load a device bundle, to be called like a function.

    Parameters
    ----------
    bundle : str or path
        The folder that `zmq-offload compile` writes as ``device``.
    broker : str or sequence of str, optional
        The endpoint of the broker that passes requests to workers, or several for failover. The client that connects to
        it is closed with the model.
    client : InferenceClient, optional
        A client to use instead, such as `zmq_offload.Client`. It can serve several models, and the caller closes it.
    timeout : float, optional
        Seconds for each offloaded region of each call. Default: the client's timeout.
    offload : {"always", "never", "auto"}, default "always"
        Where the offloaded regions run; see `OffloadedModel.offload`.

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
        `bundle` is not a path, or not exactly one of `broker` and `client` is given.

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
    if (broker is None) == (client is None):
        raise InvalidArgument("load() needs a broker or a client, and not both")
    if timeout is not None:
        timeout = check_timeout(timeout)
    module = load_library(library)
    fallbacks = {
        fallback.model: Machines(load_library(path), fallback.inputs)
        for fallback, path in manifest.check_fallback(folder).items()
    }
    if client is not None:
        return OffloadedModel(manifest, module, client, timeout=timeout, fallbacks=fallbacks, offload=offload)
    assert broker is not None  # as checked above
    own = Client(broker)
    try:
        model = OffloadedModel(
            manifest, module, own, timeout=timeout, close=own.close, fallbacks=fallbacks, offload=offload
        )
        own.belongs_to_another()
        return model
    except BaseException:
        own.close()
        raise
