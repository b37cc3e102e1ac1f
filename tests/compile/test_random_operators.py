"""Random models of one operator give ONNX Runtime's result, or are refused by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest

from tests.support.operator_cases import REFUSED, RIGHT, outcome
from tests.support.random_operators import samples


def check(seeds: Sequence[int]) -> None:
    kinds: Counter[str] = Counter()
    for name, sample in samples(seeds):
        case = sample.case(name)
        if case is None:
            continue
        found = outcome(case, constant=False)
        assert found.kind in (RIGHT, REFUSED), f"{name}: {found.kind}: {found.detail}; {sample}"
        assert found.kind == RIGHT or "cannot import the operator" in found.detail, f"{name}: {found.detail}"
        kinds[found.kind] += 1
    print(f"{kinds[RIGHT]} of {kinds.total()} random models are right, the others are refused by name")
    assert kinds[RIGHT] >= 0.9 * kinds.total()


def test_random_operators() -> None:
    check([0])


@pytest.mark.operators
@pytest.mark.parametrize("first", range(1, 61, 10))
def test_many_random_operators(first: int) -> None:
    check(range(first, first + 10))
