"""Settings and fixtures of all tests."""

from __future__ import annotations

import os
import signal

from hypothesis import settings

from tests.support.examples import THOROUGH

pytest_plugins = ["tests.support.arm", "tests.support.compiled", "tests.support.fabrics", "tests.support.native_code"]

# The models of the tests are tiny; a thread pool in each process would only cost time.
os.environ.setdefault("TVM_NUM_THREADS", "1")

# A shell starts background jobs with SIGINT ignored, `nohup` ignores SIGHUP, and their children inherit that. The tests
# send both.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# No deadline for an example: its time depends on the machine.
settings.register_profile("default", deadline=None, max_examples=100)
settings.register_profile("thorough", deadline=None, max_examples=100 * THOROUGH)
settings.load_profile("default")
