"""Connections of a worker on plain sockets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from workers.streamlinks import StreamLinks


@pytest.fixture
def links() -> Iterator[StreamLinks]:
    made = StreamLinks(["tcp://127.0.0.1:1"], heartbeat=1.0, most_messages=100, max_frame_bytes=1 << 20)
    yield made
    made.close([False])


def test_the_other_thread_does_not_go_on_after_a_run_that_has_ended_meanwhile(links: StreamLinks) -> None:
    """It reads the number of the run after it took the turn. If the run ends between the two, it read an even one."""
    links._go_on(links._runs.count)


def test_that_a_part_of_a_message_came_is_told_once(links: StreamLinks) -> None:
    for _ in range(3):
        links._happened((0, []))
    links._happened((0, [[b"message"]]))
    links._happened((0, []))
    assert links._events == [(0, []), (0, [[b"message"]]), (0, [])]
