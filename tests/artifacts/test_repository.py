"""The model repository: complete or absent, and every damage named."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from zmq_offload.artifacts.repository import ModelVersion, Repository
from zmq_offload.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from zmq_offload.protocol.tensors import TensorSpec

SPEC = (TensorSpec("x", "FP32", (-1, 3)),)


def build(folder: Path, name: str = "m", version: int = 1) -> ModelVersion:
    (folder / "subgraph.so").write_bytes(b"library")
    return ModelVersion(name, version, SPEC, SPEC, "llvm", "0.27.0", "")


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    repository = Repository(tmp_path / "repository")
    repository.write("m", 1, build)
    return repository


def test_what_is_written_is_read(repository: Repository) -> None:
    found = repository.read("m", 1)
    assert (found.name, found.version, found.inputs, found.target) == ("m", 1, SPEC, "llvm")
    assert found.checksum.startswith("sha256:")
    assert repository.models() == ["m"]
    assert repository.versions("m") == [1]


def test_versions_are_numbers_in_order(repository: Repository) -> None:
    for version in (10, 9):
        repository.write("m", version, lambda f, v=version: build(f, version=v))
    (repository.root / "m" / "notes").mkdir()
    (repository.root / "m" / "007").mkdir()
    assert repository.versions("m") == [1, 9, 10]


def test_an_absent_repository_is_empty(tmp_path: Path) -> None:
    assert Repository(tmp_path / "none").models() == []


def test_a_version_is_not_overwritten_unless_forced(repository: Repository) -> None:
    with pytest.raises(AlreadyExists, match="exists"):
        repository.write("m", 1, build)
    repository.write("m", 1, build, force=True)


def test_a_build_that_fails_leaves_nothing(repository: Repository) -> None:
    def broken(folder: Path) -> ModelVersion:
        (folder / "subgraph.so").write_bytes(b"half")
        raise InvalidArgument("no")

    with pytest.raises(InvalidArgument):
        repository.write("m", 2, broken)
    assert repository.versions("m") == [1]
    assert [p.name for p in (repository.root / "m").iterdir()] == ["1"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FailedPrecondition, match="file"):
        Repository(tmp_path / "file").write("m", 1, build)


@pytest.mark.parametrize("name", ["", ".hidden", "-x", "a/b", "..", "ä", "x" * 129, "a b"])
def test_names_that_cannot_name_a_folder_are_refused(repository: Repository, name: str) -> None:
    with pytest.raises(InvalidArgument, match="model name"):
        repository.path(name, 1)


def edit(repository: Repository, **changes: Any) -> None:
    file = repository.path("m", 1) / "model.json"
    described = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in described.items() if v != "DELETE"}))


FIXED = {"name": "x", "datatype": "FP32", "shape": [2]}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format_version": 2}, "format_version is 2"),
        ({"name": "other"}, "describes 'other'"),
        ({"version": "1"}, "version is '1'; expected int"),
        ({"inputs": "DELETE"}, "'inputs' is missing"),
        ({"inputs": {}}, "inputs is {}; expected array"),
        ({"inputs": [{"name": "x", "datatype": "F32", "shape": []}]}, "'F32' is not one of"),
        ({"outputs": [{"name": "x", "datatype": "FP32", "shape": [-2]}]}, "not a list of extents"),
        ({"checksum": "sha256:00"}, "is damaged"),
        ({"cpu": []}, r"cpu is \[\]; expected object"),
        ({"cpu": {"architecture": "x"}}, "cpu: key 'features' is missing"),
        ({"batching": {"max_batch": 0}}, "batching: max_batch 0 is not a whole number of rows from 1"),
        ({"batching": {"max_batch": 2, "delay": 1}}, "batching: key 'delay' is not known"),
        (
            {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2]}], "batching": {"max_batch": 2}},
            "no symbolic batch",
        ),
        ({"tvm_version": 1}, "tvm_version is 1; expected str"),
        # What no message could carry: a worker that announced it would lose all its models.
        ({"version": 2**31}, "version is 2147483648; expected int <= 2147483647"),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [2**64]}]}, "one from 2\\*\\*40"),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1] * 17}]}, "more than 16 extents"),
        ({"inputs": [{"name": "", "datatype": "FP32", "shape": []}]}, "1 to 512 bytes, not 0"),
        ({"inputs": [{"name": "é" * 257, "datatype": "FP32", "shape": []}]}, "1 to 512 bytes, not 514"),
        ({"inputs": [{"name": "\ud800", "datatype": "FP32", "shape": []}]}, "surrogate"),
        ({"outputs": [{"name": "x", "datatype": "FP32", "shape": []}] * 2}, "two outputs have the name 'x'"),
        ({"inputs": [{"name": f"x{i}", "datatype": "FP32", "shape": []} for i in range(257)]}, "257 inputs; a message"),
    ],
)
def test_a_damaged_description_is_named(repository: Repository, changes: dict[str, Any], says: str) -> None:
    edit(repository, **changes)
    with pytest.raises(FailedPrecondition, match=says):
        repository.read("m", 1)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"[" * 100_000])
def test_a_description_that_is_not_json_is_named(repository: Repository, content: bytes) -> None:
    (repository.path("m", 1) / "model.json").write_bytes(content)
    with pytest.raises(FailedPrecondition, match=r"model\.json"):
        repository.read("m", 1)


def test_a_truncated_or_missing_library_is_named(repository: Repository) -> None:
    library = repository.path("m", 1) / "subgraph.so"
    library.write_bytes(b"libr")
    with pytest.raises(FailedPrecondition, match=r"subgraph\.so is damaged"):
        repository.read("m", 1)
    library.unlink()
    with pytest.raises(FailedPrecondition, match=r"subgraph\.so"):
        repository.read("m", 1)
    with pytest.raises(FailedPrecondition, match=r"model\.json"):
        repository.read("m", 2)


def test_links_out_of_the_repository_and_special_files_are_refused(repository: Repository, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (repository.root / "m" / "1").rename(outside)
    (repository.root / "m" / "1").symlink_to(outside)
    with pytest.raises(FailedPrecondition, match=r"model\.json leads out of the repository"):
        repository.read("m", 1)
    (repository.root / "m" / "1").unlink()
    outside.rename(repository.root / "m" / "1")
    repository.read("m", 1)
    library = repository.root / "m" / "1" / "subgraph.so"
    library.rename(tmp_path / "elsewhere.so")
    library.symlink_to(tmp_path / "elsewhere.so")
    with pytest.raises(FailedPrecondition, match=r"subgraph\.so leads out of the repository"):
        repository.read("m", 1)
    library.unlink()
    os.mkfifo(library)  # to open it would block
    with pytest.raises(FailedPrecondition, match=r"subgraph\.so is not a regular file"):
        repository.read("m", 1)
