"""The arm64 root in which tests run what a device runs, or why there is none."""

from __future__ import annotations

import pytest

from tests.arm.root import Missing, Root, arm_root


@pytest.fixture(scope="session")
def arm64() -> Root:
    try:
        return arm_root()
    except Missing as reason:
        pytest.skip(str(reason))
