"""The answers that a gateway keeps: what they are kept under, and within which bounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.gateway.fake_fabric import model
from zmq_offload.gateway import responsecache
from zmq_offload.gateway.catalog import CachePolicy, Model
from zmq_offload.gateway.responsecache import LARGEST_SHARE, OVERHEAD, Key, ResponseCache, key_of
from zmq_offload.protocol.packed import pack
from zmq_offload.protocol.payload import Array

KEPT = replace(model("m"), cache=CachePolicy(60.0, "sha256:1"))
INPUTS: Mapping[str, Array] = {"x": np.arange(4, dtype=np.float32), "y": np.zeros((2, 2000), np.float32)}
A, B, C = (Key("m", 1, bytes([number]) * 32) for number in range(3))


def test_equal_requests_have_equal_keys() -> None:
    assert key_of(KEPT, pack(INPUTS)) == key_of(KEPT, pack({name: array.copy() for name, array in INPUTS.items()}))


@pytest.mark.parametrize(
    "other",
    [
        {"x": INPUTS["x"] + 1, "y": INPUTS["y"]},
        {"x": INPUTS["x"], "y": INPUTS["y"] + 1},
        {"x": INPUTS["x"].view(np.int32), "y": INPUTS["y"]},
        {"x": INPUTS["x"].reshape(2, 2), "y": INPUTS["y"]},
        {"z": INPUTS["x"], "y": INPUTS["y"]},
        {"x": INPUTS["x"]},
    ],
    ids=["small tensor", "large tensor", "datatype", "shape", "name", "number of tensors"],
)
def test_other_inputs_have_another_key(other: Mapping[str, Array]) -> None:
    assert key_of(KEPT, pack(other)) != key_of(KEPT, pack(INPUTS))


@pytest.mark.parametrize(
    "other",
    [
        replace(KEPT, name="other"),
        replace(KEPT, version=2),
        replace(KEPT, cache=CachePolicy(60.0, "sha256:2")),
    ],
    ids=["model", "version", "build"],
)
def test_another_model_version_or_build_has_another_key(other: Model) -> None:
    assert key_of(other, pack(INPUTS)) != key_of(KEPT, pack(INPUTS))


def test_a_model_without_a_cache_and_large_inputs_have_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    assert key_of(model("m"), pack(INPUTS)) is None
    monkeypatch.setattr(responsecache, "LARGEST_INPUTS", 1000)
    assert key_of(KEPT, pack(INPUTS)) is None


def test_an_answer_is_kept_for_its_time_as_a_copy() -> None:
    cache = ResponseCache(10**6)
    frame = bytearray(b"answer")
    cache.put(A, [b"head", memoryview(frame)], 5.0, now=10.0)
    frame[:] = b"other!"
    assert cache.get(A, 14.9) == [b"head", b"answer"]
    assert cache.get(B, 14.9) is None
    assert cache.get(A, 15.0) is None
    assert (len(cache), cache.nbytes, cache.evicted) == (0, 0, 0)


def test_the_answer_that_was_not_used_for_longest_makes_room() -> None:
    cache = ResponseCache(10 * (OVERHEAD + 100))
    keys = [Key("m", 1, bytes([number]) * 32) for number in range(11)]
    for key in keys[:10]:
        cache.put(key, [bytes(100)], 60.0, 0.0)
    assert cache.get(keys[0], 1.0) is not None
    cache.put(keys[10], [bytes(100)], 60.0, 1.0)
    assert (cache.get(keys[1], 1.0), cache.evicted) == (None, 1)
    assert all(cache.get(key, 1.0) is not None for key in (keys[0], *keys[2:]))


def test_a_later_answer_replaces_an_earlier_one() -> None:
    cache = ResponseCache(10**6)
    cache.put(A, [b"old"], 60.0, 0.0)
    cache.put(A, [b"new"], 60.0, 0.0)
    assert (cache.get(A, 1.0), cache.nbytes) == ([b"new"], OVERHEAD + 3)


def test_an_answer_that_would_fill_much_of_the_cache_is_not_kept() -> None:
    cache = ResponseCache(LARGEST_SHARE * (OVERHEAD + 100))
    cache.put(A, [bytes(101)], 60.0, 0.0)
    assert len(cache) == 0
    cache.put(A, [bytes(100)], 60.0, 0.0)
    assert len(cache) == 1


@given(st.lists(st.tuples(st.sampled_from([A, B, C]), st.integers(0, 2000), st.integers(1, 9)), max_size=60))
def test_the_bytes_are_those_of_the_entries_and_within_the_bound(steps: list[tuple[Key, int, int]]) -> None:
    cache, now = ResponseCache(8 * 2000), 0.0
    for key, nbytes, seconds in steps:
        now += 1.0
        cache.get(key, now)
        cache.put(key, [bytes(nbytes)], seconds, now)
        held = [frames for each in (A, B, C) if (frames := cache.get(each, now)) is not None]
        assert cache.nbytes <= cache.max_bytes
        assert cache.nbytes == sum(OVERHEAD + len(frames[0]) for frames in held)
