"""How the processes of a worker share a host's cores."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.config import parse
from workers.cores import Peer, Placement, place, share_of


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


def test_supervisors_that_start_together_share_the_cores() -> None:
    first, second = Peer((0, 1), 1), Peer((0, 1), 1)
    assert place(0, 1, [0, 1], usable=2, later=[second]) == Placement(1, (0,))
    taken = Peer((0, 1), 1, ((0,),))
    assert place(0, 1, [0, 1], usable=2, earlier=[taken]) == Placement(1, (1,))
    assert place(0, 1, [0, 1], usable=2, earlier=[first]) == Placement(1, (1,)), "the first holds none yet"


def test_a_process_takes_the_cores_that_the_fewest_are_bound_to() -> None:
    """Of three supervisors the first has gone: its core is free, whatever the order of the others."""
    others = [Peer((0, 1, 2), 1, ((1,),)), Peer((0, 1, 2), 1, ((2,),))]
    assert place(0, 1, [0, 1, 2], usable=3, earlier=others) == Placement(1, (0,))


def test_an_early_supervisor_keeps_its_cores_and_a_late_one_gets_its_share() -> None:
    early = Peer((0, 1), 1, ((0, 1),))
    assert place(0, 1, [0, 1], usable=2, earlier=[early]) == Placement(1, (1,))


def test_supervisors_on_other_cores_do_not_count() -> None:
    assert place(0, 1, [0, 1], usable=2, earlier=[Peer((2, 3), 4, ((2,), (3,)))]) == Placement(2, (0, 1))


def test_a_quota_limits_the_threads_and_not_where_they_run() -> None:
    assert place(0, 1, [0, 1, 2, 3], usable=1) == Placement(1, (0, 1, 2, 3))
    assert place(1, 2, [0, 1, 2, 3], usable=3, held=[(0, 1)]) == Placement(1, (2, 3))


def test_a_process_with_more_threads_than_its_block_is_not_bound() -> None:
    assert place(0, 1, [0, 1], usable=2, threads=2, later=[Peer((0, 1), 1)]) == Placement(2, None)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(1, 12), st.randoms(use_true_random=False))
def test_any_order_of_starts_covers_all_cores_evenly(processes: list[int], cores: int, rng: Any) -> None:
    """All supervisors are there before the first process starts; processes then start in any order."""
    everything = list(range(cores))
    held: list[dict[int, tuple[int, ...]]] = [{} for _ in processes]
    starts = [(at, seat) for at, own in enumerate(processes) for seat in range(own)]
    rng.shuffle(starts)
    for at, seat in starts:
        peers = [Peer(tuple(everything), own, tuple(held[i].values())) for i, own in enumerate(processes)]
        where = place(
            seat, processes[at], everything, usable=cores, earlier=peers[:at], later=peers[at + 1 :],
            held=held[at].values(),
        )  # fmt: skip
        assert where.cores is not None and where.threads == max(1, cores // sum(processes))
        held[at][seat] = where.cores
    many = Counter(core for own in held for kept in own.values() for core in kept)
    assert set(many) == set(everything)
    assert max(many.values()) - min(many.values()) <= 1


def test_processes_may_be_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    for usable, expected in ((1, 1), (2, 2), (64, 4)):
        monkeypatch.setattr("workers.config.usable_cores", lambda usable=usable: usable)
        assert parse(["--processes", "auto"]).processes == expected
    assert parse([]).processes == 1
    with pytest.raises(SystemExit):
        parse(["--processes", "many"])


def test_pinning_is_on_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse([]).pin
    assert not parse(["--pin", "off"]).pin
    monkeypatch.setenv("ZMQ_OFFLOAD_PIN", "off")
    assert not parse([]).pin
    with pytest.raises(SystemExit):
        parse(["--pin", "perhaps"])


def test_a_process_with_a_gpu_takes_the_cores_near_it() -> None:
    """Of those that are equally free. Processes of two GPUs at two processors do not take each other's cores."""
    first = place(0, 2, range(8), usable=4, near=range(4, 8))
    assert first.cores == (4, 5, 6, 7)
    second = place(1, 2, range(8), usable=4, near=range(4), held=[first.cores])
    assert second.cores == (0, 1, 2, 3)
    assert place(0, 2, range(8), usable=4, near=range(4), held=[(0, 1)]).cores == (2, 3, 4, 5)
