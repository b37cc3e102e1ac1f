"""The demo's figures: differences and what is allowed, the stages of an item."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from zmq_offload.client.results import Outputs, Timings
from zmq_offload.demo import model
from zmq_offload.demo.build import Job
from zmq_offload.demo.check import Verdict, compare, largest_difference
from zmq_offload.demo.items import Item, StageTimes, stages
from zmq_offload.errors import FailedPrecondition

NOTHING = StageTimes(0, 0, 0, 0, 0)


def frame(number: int, *values: float) -> Item:
    return Item(0, number, np.array(values, np.float32), NOTHING)


def test_the_largest_difference_is_of_all_items_each_from_its_own_picture() -> None:
    references = [np.array([1, 2], np.float32), np.array([3, 4], np.float32)]
    frames = [frame(0, 1, 2), frame(1, 3, 4.5), frame(0, 1.25, 2)]
    verdict = compare("it", frames, references, bar=0.5)
    assert verdict.difference == 0.5
    assert verdict.passed
    assert "PASS" in str(verdict)


def test_over_the_bar_is_said() -> None:
    verdict = compare("it", [frame(0, 1, 2.5)], [np.array([1, 2], np.float32)], bar=1e-4)
    assert not verdict.passed
    assert "OVER THE BAR" in str(verdict)


def test_nan_and_another_shape_do_not_pass() -> None:
    assert not compare("it", [frame(0, 1), frame(0, math.nan)], [np.ones(1, np.float32)], bar=1).passed
    assert largest_difference(np.ones((1, 2)), np.ones((2, 1))) == math.inf
    assert not Verdict("it", math.nan, 1.0).passed


def test_the_stages_add_up_to_the_total() -> None:
    outputs = Outputs({}, "m", 1, Timings(queue=0.25, compute=0.5, broker=1.0, total=1.25))
    found = stages(3.0, [(1.5, outputs)])
    assert found == StageTimes(device=1.5, wire=0.5, queue=0.5, compute=0.5, total=3.0)
    assert sum(found) - found.total == pytest.approx(found.total)


def test_what_is_compiled_is_kept_under_another_name_for_another_job(tmp_path: Path) -> None:
    file, other = tmp_path / "a.onnx", tmp_path / "b.onnx"
    file.write_bytes(b"a")
    other.write_bytes(b"b")
    keys = [
        Job(file, (64, 32), ("t",)).key(),
        Job(other, (64, 32), ("t",)).key(),
        Job(file, (32, 64), ("t",)).key(),
        Job(file, (64, 32), ("u",)).key(),
    ]
    assert len(set(keys)) == 4
    assert Job(file, (64, 32), ("t",)).key() == keys[0]


def test_without_the_networks_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "_PACKAGE", "no_such_package_is_installed")
    with pytest.raises(FailedPrecondition, match=r"zmq-offload\[demo\].*ignore-requires-python"):
        model.find_model()
