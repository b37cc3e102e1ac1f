"""Files that earlier releases wrote are read as they were meant, and what is written now has the same content."""

from __future__ import annotations

import json
from pathlib import Path

from zmq_offload.artifacts.cpu import CpuNeeds
from zmq_offload.artifacts.manifest import Fallback, Manifest, OffloadedRegion
from zmq_offload.artifacts.repository import Batching, ModelVersion, Repository, checksum
from zmq_offload.protocol.tensors import TensorSpec

X, Y = TensorSpec("größe", "FP32", (-1, 3)), TensorSpec("y", "INT64", (-1,))
NEEDS = CpuNeeds("x86_64", ("avx2", "fma"))

TENSORS = r"""
  "inputs": [{"name": "gr\u00f6\u00dfe", "datatype": "FP32", "shape": [-1, 3]}],
  "outputs": [{"name": "y", "datatype": "INT64", "shape": [-1]}],
"""
CPU = '"cpu": {"architecture": "x86_64", "features": ["avx2", "fma"]}'

# As written by 0.1.0.
MODEL = f"""{{
  "format_version": 1, "name": "ocr", "version": 3, {TENSORS}
  "target": "llvm", "tvm_version": "0.27.0", "checksum": "CHECKSUM", {CPU},
  "batching": {{"max_batch": 8, "delay_us": 500}}, "flops": {{"main": 4}}
}}"""
MANIFEST = f"""{{
  "format_version": 1, {TENSORS}
  "offloaded": [{{"symbol": "zmq_0", "model": "ocr", "version": "latest", {TENSORS.rstrip().rstrip(",")}}}],
  "sealed": false,
  "fallback": [{{
    "model": "ocr", "version": 3, "library": "fallback_ocr.so", {TENSORS} "checksum": "sha256:01"
  }}],
  "target": {{"kind": "llvm", "keys": ["cpu"]}}, {CPU},
  "tvm_version": "0.27.0", "checksum": "sha256:00", "flops": {{"fused": 12}}
}}"""


def test_a_model_json_of_an_earlier_release(tmp_path: Path) -> None:
    folder = tmp_path / "ocr" / "3"
    folder.mkdir(parents=True)
    (folder / "subgraph.so").write_bytes(b"library")
    digest = checksum(folder / "subgraph.so")
    (folder / "model.json").write_text(MODEL.replace("CHECKSUM", digest))
    found = Repository(tmp_path).read("ocr", 3)
    extra = {"flops": {"main": 4}}
    assert found == ModelVersion("ocr", 3, (X,), (Y,), "llvm", "0.27.0", digest, NEEDS, Batching(8, 500), extra)
    assert json.loads(json.dumps(found.to_json())) == json.loads(MODEL.replace("CHECKSUM", digest))


def test_a_model_json_without_optional_keys_writes_none() -> None:
    described = json.loads(MODEL)
    for key in ("cpu", "batching", "flops"):
        del described[key]
    found = ModelVersion.from_json(described)
    assert (found.cpu, found.batching, found.extra) == (None, None, {})
    assert json.loads(json.dumps(found.to_json())) == described


def test_keys_that_this_release_does_not_know_are_kept() -> None:
    described = json.loads(MODEL) | {"owner": "vision", "extra": [1]}
    found = ModelVersion.from_json(described)
    assert found.extra == {"flops": {"main": 4}, "owner": "vision", "extra": [1]}
    assert json.loads(json.dumps(found.to_json())) == described


def test_a_manifest_of_an_earlier_release(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(MANIFEST)
    found = Manifest.read(tmp_path)
    assert found == Manifest(
        (X,),
        (Y,),
        (OffloadedRegion("zmq_0", "ocr", "latest", (X,), (Y,)),),
        {"kind": "llvm", "keys": ["cpu"]},
        NEEDS,
        "0.27.0",
        "sha256:00",
        {"fused": 12},
        (Fallback("ocr", 3, "fallback_ocr.so", "sha256:01", (X,), (Y,)),),
    )
    found.write(tmp_path)
    assert json.loads((tmp_path / "manifest.json").read_bytes()) == json.loads(MANIFEST)


def test_a_manifest_from_before_fallbacks_and_counts_is_sealed(tmp_path: Path) -> None:
    described = json.loads(MANIFEST)
    for key in ("sealed", "fallback", "flops"):
        del described[key]
    (tmp_path / "manifest.json").write_text(json.dumps(described))
    found = Manifest.read(tmp_path)
    assert (found.fallback, found.flops) == ((), {})
