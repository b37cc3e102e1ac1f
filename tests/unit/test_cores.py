"""How the processes of a worker share a host's cores."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.config import parse
from workers.cores import share_of


def shares(processes: int, threads: int, cores: list[int]) -> list[tuple[int, ...] | None]:
    return [share_of(seat, processes, threads, cores) for seat in range(processes)]


def test_each_process_has_a_block_of_cores_to_itself() -> None:
    assert shares(2, 2, [0, 1, 2, 3]) == [(0, 1), (2, 3)]
    assert shares(2, 1, [4, 7]) == [(4,), (7,)]
    assert shares(1, 2, [0, 1]) == [(0, 1)]


def test_cores_that_do_not_divide_evenly_are_all_used() -> None:
    assert shares(3, 1, [0, 1, 2, 3]) == [(0,), (1,), (2, 3)]


def test_more_processes_than_cores_share_them_in_turn() -> None:
    assert shares(5, 1, [0, 1]) == [(0,), (1,), (0,), (1,), (0,)]


def test_a_process_with_more_threads_than_its_share_is_left_to_the_system() -> None:
    assert shares(2, 2, [0, 1]) == [None, None]
    assert shares(3, 2, [0, 1, 2, 3]) == [None, None, (2, 3)]


@given(st.integers(1, 20), st.sets(st.integers(0, 100), min_size=1, max_size=20))
def test_every_core_works_and_none_much_more_than_another(processes: int, cores: set[int]) -> None:
    found = [core for share in shares(processes, 1, sorted(cores)) for core in share or ()]
    many = [found.count(core) for core in cores]
    assert max(many) - min(many) <= 1
    assert min(many) >= 1


def test_pinning_is_on_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse([]).pin
    assert not parse(["--pin", "off"]).pin
    monkeypatch.setenv("ZMQ_OFFLOAD_PIN", "off")
    assert not parse([]).pin
    with pytest.raises(SystemExit):
        parse(["--pin", "perhaps"])
