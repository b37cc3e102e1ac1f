"""Metrics of programs under test, as a parser of Prometheus' reads them."""

from __future__ import annotations

import urllib.request
from typing import TypeAlias

from prometheus_client.parser import text_string_to_metric_families

Samples: TypeAlias = dict[tuple[str, tuple[tuple[str, str], ...]], float]
"""Values by the name of the series and its labels, in the order in which they are written."""


def scraped(address: str) -> str:
    """What a program serves at /metrics of HOST:PORT."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=20) as answer:
        return str(answer.read().decode())


def samples(text: str) -> Samples:
    """All samples of a text. No two may have the same name and labels."""
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            # The parser gives all counters the ending `_total`, which Triton's do not have.
            name = sample.name.removesuffix("_total") if sample.name.startswith("nv_") else sample.name
            key = name, tuple(sample.labels.items())
            assert key not in found, key
            found[key] = sample.value
    return found


def by_values(text: str) -> dict[tuple[str, frozenset[str]], float]:
    """The samples by name and the values of their labels."""
    return {(name, frozenset(dict(labels).values())): value for (name, labels), value in samples(text).items()}
