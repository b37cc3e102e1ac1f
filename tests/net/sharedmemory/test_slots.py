"""Slots: their places, their generations, and when they are taken back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from zmq_offload.net.sharedmemory.slots import TAKE_BACK, UNIT, Slot, Slots

_COUNT, _SIZE = 4, 8 * UNIT


def _end(slot: Slot) -> int:
    return slot.start + -(-slot.nbytes // UNIT) * UNIT


@given(st.lists(st.one_of(st.integers(1, 5 * UNIT), st.integers(-4, -1), st.just(0))))
def test_used_slots_never_overlap_and_no_generation_comes_twice(steps: list[int]) -> None:
    slots = Slots(_COUNT, _SIZE)
    used: list[Slot] = []
    seen: set[tuple[int, int]] = set()
    top = peak = 0
    for step in steps:
        if step > 0:
            slot = slots.take(step)
            if slot is None:
                assert used
            else:
                assert slot.nbytes == step
                assert _end(slot) <= _SIZE
                assert all(_end(slot) <= other.start or _end(other) <= slot.start for other in used)
                assert len({s.number for s in used} | {slot.number}) == len(used) + 1 <= _COUNT
                assert (slot.number, slot.generation) not in seen
                seen.add((slot.number, slot.generation))
                used.append(slot)
                peak = max(peak, _end(slot))
        elif step < 0 and used:
            slot = used.pop(step % len(used))
            assert slots.free(slot) > slot.generation
        elif step == 0:
            top = max(top, peak)
            assert slots.unneeded() == (peak, top - peak)
            assert all(_end(s) <= peak for s in used)
            top, peak = peak, max(map(_end, used), default=0)
        assert len(slots) == len(used)
        for slot in used:
            assert slots.find(slot.start, slot.nbytes) is slot
            assert slots.find(slot.start + slot.nbytes - 1, 1) is slot
            assert slots.find(slot.start + slot.nbytes - 1, 2) is None
    for slot in used:
        slots.free(slot)
    assert slots.find(0, 1) is None
    assert slots.take(_SIZE) is not None


def test_a_lent_slot_is_free_at_once_and_a_given_one_when_its_reader_came_or_is_late() -> None:
    slot = Slot(0, 1, 0, 100)
    assert slot.may_be_taken_back(False, 0.0)
    slot.given_at = 10.0
    assert not slot.may_be_taken_back(False, 10.0 + TAKE_BACK - 0.1)
    assert slot.may_be_taken_back(False, 10.0 + TAKE_BACK)
    assert slot.may_be_taken_back(True, 10.0)


def test_there_are_no_more_slots_than_numbers() -> None:
    slots = Slots(2, _SIZE)
    first = slots.take(1)
    assert first is not None
    assert slots.take(1) is not None
    assert slots.take(1) is None
    slots.free(first)
    again = slots.take(1)
    assert again is not None
    assert (again.number, again.generation) == (first.number, first.generation + 1)
