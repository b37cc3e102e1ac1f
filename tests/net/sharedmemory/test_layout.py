"""The head of an arena and the heads of its cells."""

from __future__ import annotations

import mmap

from hypothesis import given
from hypothesis import strategies as st

from zmq_offload.net.sharedmemory import layout
from zmq_offload.net.sharedmemory.layout import COUNT, DATA_AT, CellHead

_numbers = st.integers(0, 2**64 - 1)
_heads = st.builds(CellHead, _numbers, _numbers, _numbers)


def test_the_head_of_an_arena_has_its_cookie_and_fits_its_size() -> None:
    memory = memoryview(bytearray(DATA_AT))
    assert layout.read_head(memory, DATA_AT + 4096) is None
    layout.write_head(memory, b"c" * 16, 4096, b"s" * 16)
    assert layout.read_head(memory, DATA_AT + 4096) == (b"c" * 16, b"s" * 16)
    assert layout.read_head(memory, DATA_AT + 8192) is None


def test_data_begin_where_any_page_may() -> None:
    assert DATA_AT % mmap.ALLOCATIONGRANULARITY == 0
    assert DATA_AT % 65536 == 0


@given(st.dictionaries(st.integers(0, COUNT - 1), _heads, max_size=5), st.integers(0, COUNT - 1))
def test_each_cell_has_a_head_of_its_own(heads: dict[int, CellHead], seen: int) -> None:
    memory = memoryview(bytearray(DATA_AT))
    layout.write_head(memory, b"c" * 16, 4096, b"s" * 16)
    for number, head in heads.items():
        layout.mark_seen(memory, number)
        layout.write_cell(memory, number, head)
        assert not layout.is_seen(memory, number)
    layout.mark_seen(memory, seen)
    assert {number: layout.read_cell(memory, number) for number in heads} == heads
    assert [number for number in {*heads, seen} if layout.is_seen(memory, number)] == [seen]
    assert layout.read_head(memory, DATA_AT + 4096) == (b"c" * 16, b"s" * 16)


@given(st.dictionaries(st.integers(0, COUNT - 1), st.integers(0, 2**40), max_size=5), _numbers)
def test_what_is_lent_is_the_sum_of_all_cells(sizes: dict[int, int], mapped: int) -> None:
    memory = memoryview(bytearray(DATA_AT))
    layout.write_head(memory, b"c" * 16, 4096, b"s" * 16)
    for number, nbytes in sizes.items():
        layout.write_cell(memory, number, CellHead(7, 4096, nbytes))
    layout.write_mapped(memory, mapped)
    assert layout.lent_bytes(memory) == sum(sizes.values())
    assert layout.read_mapped(memory) == mapped
    assert layout.read_head(memory, DATA_AT + 4096) == (b"c" * 16, b"s" * 16)
