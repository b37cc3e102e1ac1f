"""Which weights the device holds, and what --seal refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from zmq_offload.artifacts.manifest import Manifest
from zmq_offload.byoc.region import Region
from zmq_offload.cli.main import main
from zmq_offload.compile import Cut, compile_model
from zmq_offload.compile.held import ways_to_divide, weights_on_device
from zmq_offload.compile.models.base import Origins
from zmq_offload.errors import InvalidArgument

# x -w1-> a -w2-> b -w3-> y, and a -w4-> z
ORIGINS = Origins(
    frozenset({"w1", "w2", "w3", "w4"}),
    {"a": ("x", "w1"), "b": ("a", "w2"), "y": ("b", "w3"), "z": ("a", "w4")},
    frozenset({"x"}),
)


def held(*regions: tuple[str, str | None], splits: bool = True, whole: bool = False, seal: Any = ()) -> tuple[str, ...]:
    given = [Region(f"m{i}", [cut], None if end is None else [end]) for i, (cut, end) in enumerate(regions)]
    names = [region.cut[0] for region in given] if splits else []
    return weights_on_device(ORIGINS, ways_to_divide(given, names, whole), ["y", "z"], seal)


@pytest.mark.parametrize(
    ("regions", "weights"),
    [
        ([("x", None)], ()),
        ([("a", None)], ("w1",)),
        ([("b", None)], ("w1", "w2", "w4")),  # z does not depend on b
        ([("a", "b")], ("w1", "w3", "w4")),
        ([("x", None), ("a", "b")], ("w1", "w3", "w4")),
        ([("a", "y"), ("a", "z")], ("w1", "w2", "w3", "w4")),
        ([("a", None), ("unknown", None)], ("w1",)),  # the device must not know the names of others
    ],
)
def test_the_device_holds_what_some_split_needs_there(regions: Any, weights: tuple[str, ...]) -> None:
    assert held(*regions) == weights


def test_regions_are_offloaded_together() -> None:
    assert held(("a", "y"), ("a", "z"), splits=False) == ("w1",)
    assert held(("x", None), whole=True) == ("w1", "w2", "w3", "w4")


def test_a_sealed_weight_on_the_device_is_refused() -> None:
    assert held(("a", None), ("x", None), seal=["w2", "w3"]) == ("w1",)
    with pytest.raises(InvalidArgument, match="--seal: the device would hold 'w2' for the split 'b'; leave that out"):
        held(("a", None), ("b", None), seal=["w2", "w3"])
    with pytest.raises(InvalidArgument, match="would hold 'w2', 'w3' for the split 'unknown'"):
        held(("unknown", None), seal=["w3", "w2"])
    with pytest.raises(InvalidArgument, match="would hold 'w3' for --with-fallback"):
        held(("a", None), whole=True, seal=["w3"])
    with pytest.raises(InvalidArgument, match="would hold 'w1' for its part of the model"):
        held(("a", None), splits=False, seal=["w1"])
    with pytest.raises(InvalidArgument, match=r"--seal: the model has no weight 'w5'; the nearest are 'w4'"):
        held(("a", None), seal=["w5"])


def test_the_manifest_names_the_weights_and_seal_holds_for_every_split(
    mlp: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {"inputs": {"x": (2, 8)}, "name": "m", "seal": ["w2"]}
    compiled = compile_model(mlp, cuts=["x", "h1", Cut("h2", wire="int8")], output=tmp_path / "dist", **options)
    assert Manifest.read(compiled.device).weights == ("w1",)
    with pytest.raises(InvalidArgument, match="--seal: the device would hold 'w2' for the split 'h3'"):
        compile_model(mlp, cuts=["h1", "h3"], output=tmp_path / "more", **options)
    words = ["compile", str(mlp), "--input", "x=2,8", "--name", "m", "-o", str(tmp_path / "one"), "--cut", "h3"]
    assert main([*words, "--seal", "w2"]) == 1
    assert "--seal: the device would hold 'w2' for its part of the model" in capsys.readouterr().err
    assert not (tmp_path / "more").exists() and not (tmp_path / "one").exists()
