"""How many examples Hypothesis tries where each compiles something."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

THOROUGH = 4
"""How many times as many examples the profile "thorough" tries; `.ci/slow` loads it."""


def examples(count: int) -> settings:
    """Settings of `count` examples, which may take long."""
    return settings(
        max_examples=count * settings().max_examples // 100,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
