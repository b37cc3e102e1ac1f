"""What a worker writes to stderr: lines of TVM, of others, long ones, and the last."""

from __future__ import annotations

import logging

from workers.words import Lines, word_of


def test_a_line_of_tvm_has_its_level_and_its_place() -> None:
    said = "[10:11:12] /src/runtime/threading_backend.cc:338: Warning: more threads than cores"
    level, text, source = word_of(said)
    assert (level, source) == (logging.WARNING, "tvm")
    assert text == "/src/runtime/threading_backend.cc:338: more threads than cores"
    assert word_of("[10:11:12] a.cc:1: loaded") == (logging.INFO, "a.cc:1: loaded", "tvm")
    assert word_of("[10:11:12] a.cc:1: Fatal: gone").level == logging.CRITICAL
    assert word_of("Segmentation fault") == (logging.WARNING, "Segmentation fault", "stderr")


def test_lines_are_cut_and_the_rest_comes_at_the_end() -> None:
    lines = Lines(longest=4)
    assert lines.add(b"ab") == []
    assert lines.add(b"c\r\n\n \nx") == ["abc"]
    assert lines.add(b"1234567\n12345") == ["x123", "4567", "1234"]
    assert lines.add(b"\xff") == []
    assert lines.add(b"") == ["5\\xff"]
    assert lines.add(b"") == []
