"""The splits that cuts become: names for people, names of models, and what is refused."""

from __future__ import annotations

import re
from typing import Any

import pytest

from zmq_offload.compile import Cut
from zmq_offload.compile.splits import named_splits
from zmq_offload.errors import InvalidArgument


def named(*cuts: Any, model: str = "m", wire: Any = "float32") -> list[tuple[str, str]]:
    return [(split.name, split.region.name) for split in named_splits(cuts, model, wire)]


def test_a_split_has_the_names_of_its_tensors_and_of_its_encoding() -> None:
    assert named("a", ["b", "c"], Cut("a", wire="int8"), Cut(["d"], wire="float16")) == [
        ("a", "m.a"),
        ("b+c", "m.b-c"),
        ("a@int8", "m.a-int8"),
        ("d@float16", "m.d-float16"),
    ]
    assert named("a", Cut("b", wire="float32"), wire="int8") == [("a@int8", "m.a-int8"), ("b", "m.b")]


def test_the_ends_are_named_where_only_they_differ() -> None:
    assert named("a", Cut("a", until=["y", "z"]), Cut("b", until="y")) == [
        ("a..outputs", "m.a..outputs"),
        ("a..y+z", "m.a..y-z"),
        ("b", "m.b"),
    ]


def test_names_of_tensors_that_no_model_can_have_are_changed_or_counted() -> None:
    assert named("/model/0/Conv_output_0", "x:0", "x/0", "größe", "t" * 200) == [
        ("/model/0/Conv_output_0", "m.model-0-Conv_output_0"),
        ("x:0", "m.x-0"),
        ("x/0", "m.3"),
        ("größe", "m.gr-e"),
        ("t" * 200, "m.5"),
    ]


def test_splits_keep_what_a_plan_predicts() -> None:
    (split,) = named_splits([Cut(("a", "b"), until="y", wire="int8", predicted={"device": 0.1})], "m", "float32")
    assert (split.cut, split.until, split.wire) == (("a", "b"), ("y",), "int8")
    assert split.predicted == {"device": 0.1}


@pytest.mark.parametrize(
    ("cuts", "says"),
    [
        ([], "cuts is []; give a list with at least one cut"),
        ("features", "cuts is 'features'; give a list with at least one cut"),
        (["a", "b", "a"], "--or-cut: the cut at 'a' is given twice with the encoding float32"),
        ([["a", "b"], ["b", "a"]], "--or-cut: the cut at 'b', 'a' is given twice"),
        ([f"t{i}" for i in range(33)], "--or-cut: 33 splits are given; a bundle has at most 32"),
        ([Cut("a", wire="int4")], "int4"),
    ],
)
def test_bad_cuts(cuts: Any, says: str) -> None:
    with pytest.raises(InvalidArgument, match=re.escape(says)):
        named_splits(cuts, "m", "float32")


def test_bad_names() -> None:
    with pytest.raises(InvalidArgument, match="name is missing"):
        named_splits(["a"], None, "float32")
    with pytest.raises(InvalidArgument, match="model name '-' is not valid"):
        named_splits(["a"], "-", "float32")
