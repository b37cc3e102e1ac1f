"""Findings: what a check found, how bad it is, and what to do. Pure."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import NamedTuple


class Level(str, enum.Enum):
    """How bad a finding is."""

    OK = "ok"
    NOTE = "note"
    """Not wrong, but worth to know."""
    WARNING = "warning"
    """Something works worse than it could."""
    FAIL = "fail"
    """Something does not work."""


class Finding(NamedTuple):
    """What a check found."""

    check: str
    """The word that stands before the finding, such as "repository"."""
    level: Level
    text: str
    remedy: str = ""
    """What to do. Findings that are worse than a note have one."""


def failed(findings: Iterable[Finding]) -> bool:
    """Whether something does not work."""
    return any(finding.level is Level.FAIL for finding in findings)
