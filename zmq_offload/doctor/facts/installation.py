"""What is installed."""

from __future__ import annotations

import platform
from importlib import metadata

import zmq

from zmq_offload import native
from zmq_offload.common.version import __version__
from zmq_offload.doctor.checks.installation import Installation, normal


def installation() -> Installation:
    """What is installed, of which versions."""
    try:
        requires = tuple(metadata.requires("zmq-offload") or ())
    except metadata.PackageNotFoundError:  # a copy of the code that was not installed
        requires = ()
    versions: dict[str, str] = {}
    for distribution in metadata.distributions():
        name = distribution.metadata["Name"]
        if name:
            versions.setdefault(normal(name), distribution.version)
    return Installation(
        platform.python_version(),
        __version__,
        requires,
        versions,
        zmq.zmq_version(),
        bool(zmq.has("curve")),
        compiled=native.wire is not None,
        switched_off=native.SWITCHED_OFF,
    )
