"""What holds for all tests."""

from __future__ import annotations

from hypothesis import settings

# How long an example takes is the machine's affair: a figure of speed is no test.
settings.register_profile("default", deadline=None)
settings.load_profile("default")
