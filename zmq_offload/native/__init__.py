"""Compiled code for what each message needs. It is optional: what it does exists in Python, too.

An installation without a C compiler has none, and `ZMQ_OFFLOAD_NATIVE=off` (or 0) switches it off. `zmq-offload doctor`
tells whether it is used, and `docs/performance.md` what it saves.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from types import ModuleType

wire: ModuleType | None = None
"""The module `zmq_offload.native.wire`; None without."""

SWITCHED_OFF = os.environ.get("ZMQ_OFFLOAD_NATIVE") in ("0", "off")
"""Whether the variable says that Python does all."""

if not SWITCHED_OFF:
    with contextlib.suppress(ImportError):
        wire = importlib.import_module("zmq_offload.native.wire")
