"""The manifest of an adaptive bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from zmq_offload.artifacts.cpu import CpuNeeds
from zmq_offload.artifacts.manifest import MANIFEST, MOST_SPLITS, BundleSplit, Manifest, OffloadedRegion
from zmq_offload.errors import FailedPrecondition, InvalidArgument
from zmq_offload.protocol.tensors import TensorSpec

X, Y = TensorSpec("x", "FP32", (1, 4)), TensorSpec("y", "FP32", (1, 2))


def split(number: int, **other: Any) -> BundleSplit:
    region = OffloadedRegion(f"zmq_{number}", f"net.{number}", "latest", (X,), (Y,))
    made = BundleSplit(f"h{number}", (f"h{number}",), (), "float32", f"split_{number}", region, {"device": 0.25})
    return msgspec.structs.replace(made, **other)


def manifest(*splits: BundleSplit, local: str = "", offloaded: tuple[OffloadedRegion, ...] | None = None) -> Manifest:
    regions = tuple(one.region for one in splits) if offloaded is None else offloaded
    target = {"kind": "llvm"}
    return Manifest((X,), (Y,), regions, target, CpuNeeds("", ()), "0", "sha256:0", splits=splits, local=local)


@pytest.mark.parametrize("local", ["", "whole"])
def test_splits_are_written_and_read(tmp_path: Path, local: str) -> None:
    made = manifest(split(0), split(1, wire="float16", until=("h9",)), local=local)
    made.write(tmp_path)
    assert Manifest.read(tmp_path) == made
    said = json.loads((tmp_path / MANIFEST).read_bytes())
    assert said["sealed"] is made.sealed is (not local)
    assert [one["name"] for one in said["splits"]] == ["h0", "h1"]
    (tmp_path / MANIFEST).write_text(json.dumps(said | {"sealed": bool(local)}))
    with pytest.raises(FailedPrecondition, match="damaged: sealed is"):
        Manifest.read(tmp_path)


def test_a_bundle_without_splits_says_nothing_of_them(tmp_path: Path) -> None:
    manifest().write(tmp_path)
    assert not {"splits", "local"} & json.loads((tmp_path / MANIFEST).read_bytes()).keys()


@pytest.mark.parametrize(
    ("splits", "others", "error"),
    [
        ([], {"local": "whole"}, "local is 'whole'; only a bundle with splits has it"),
        ([split(0), split(1, name="h0")], {}, "splits have the name 'h0' twice"),
        ([split(0), split(1, entry="split_0")], {}, "splits have the entry 'split_0' twice"),
        ([split(0)], {"local": "split_0"}, "splits have the entry 'split_0' twice"),
        ([split(0), split(1, region=split(0).region)], {}, "splits have the model 'net.0' twice"),
        ([split(0)], {"offloaded": ()}, "offloaded does not list the regions of the splits"),
        ([split(n) for n in range(MOST_SPLITS + 1)], {}, "splits are 33; at most 32"),
    ],
)
def test_splits_that_do_not_go_together_are_refused(splits: list[BundleSplit], others: Any, error: str) -> None:
    with pytest.raises(InvalidArgument, match=error):
        manifest(*splits, **others)


@pytest.mark.parametrize("lacks", [{"name": ""}, {"entry": ""}, {"cut": ()}])
def test_a_split_has_a_name_a_cut_and_an_entry(lacks: Any) -> None:
    with pytest.raises(InvalidArgument, match="one of them is empty"):
        BundleSplit(**msgspec.structs.asdict(split(0)) | lacks)
