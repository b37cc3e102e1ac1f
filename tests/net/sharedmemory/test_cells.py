"""Cells: their places, their generations, and when they are taken back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from zmq_offload.net.sharedmemory.cells import TAKE_BACK, UNIT, Cell, Cells

_COUNT, _SIZE = 4, 8 * UNIT


def _end(cell: Cell) -> int:
    return cell.start + -(-cell.nbytes // UNIT) * UNIT


@given(st.lists(st.one_of(st.integers(1, 5 * UNIT), st.integers(-4, -1), st.just(0))))
def test_used_cells_never_overlap_and_no_generation_comes_twice(steps: list[int]) -> None:
    cells = Cells(_COUNT, _SIZE)
    used: list[Cell] = []
    seen: set[tuple[int, int]] = set()
    top = peak = 0
    for step in steps:
        if step > 0:
            cell = cells.take(step)
            if cell is None:
                assert used
            else:
                assert cell.nbytes == step
                assert _end(cell) <= _SIZE
                assert all(_end(cell) <= other.start or _end(other) <= cell.start for other in used)
                assert len({s.number for s in used} | {cell.number}) == len(used) + 1 <= _COUNT
                assert (cell.number, cell.generation) not in seen
                seen.add((cell.number, cell.generation))
                used.append(cell)
                peak = max(peak, _end(cell))
        elif step < 0 and used:
            cell = used.pop(step % len(used))
            assert cells.free(cell) > cell.generation
        elif step == 0:
            top = max(top, peak)
            assert cells.unneeded() == (peak, top - peak)
            assert all(_end(s) <= peak for s in used)
            top, peak = peak, max(map(_end, used), default=0)
        assert len(cells) == len(used)
        for cell in used:
            assert cells.find(cell.start, cell.nbytes) is cell
            assert cells.find(cell.start + cell.nbytes - 1, 1) is cell
            assert cells.find(cell.start + cell.nbytes - 1, 2) is None
    for cell in used:
        cells.free(cell)
    assert cells.find(0, 1) is None
    assert cells.take(_SIZE) is not None


def test_a_lent_cell_is_free_at_once_and_a_given_one_when_its_reader_came_or_is_late() -> None:
    cell = Cell(0, 1, 0, 100)
    assert cell.may_be_taken_back(False, 0.0)
    cell.given_at = 10.0
    assert not cell.may_be_taken_back(False, 10.0 + TAKE_BACK - 0.1)
    assert cell.may_be_taken_back(False, 10.0 + TAKE_BACK)
    assert cell.may_be_taken_back(True, 10.0)


def test_there_are_no_more_cells_than_numbers() -> None:
    cells = Cells(2, _SIZE)
    first = cells.take(1)
    assert first is not None
    assert cells.take(1) is not None
    assert cells.take(1) is None
    cells.free(first)
    again = cells.take(1)
    assert again is not None
    assert (again.number, again.generation) == (first.number, first.generation + 1)
