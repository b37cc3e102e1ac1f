"""What holds for all tests."""

from __future__ import annotations

import os
import signal

from hypothesis import settings

pytest_plugins = ["tests.support.compiled", "tests.support.fabrics"]

# The tests' models are tiny: a pool of threads per process only costs.
os.environ.setdefault("TVM_NUM_THREADS", "1")

# A shell starts background jobs with SIGINT ignored, and what they start inherits that; here Ctrl-C is tested.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes is the machine's affair: a figure of speed is no test.
settings.register_profile("default", deadline=None)
settings.load_profile("default")
