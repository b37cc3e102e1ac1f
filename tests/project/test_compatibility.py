"""CHANGELOG.md's policy of compatibility: its table is that of the code, and files that 0.1 wrote are read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zmq_offload.artifacts import manifest, repository
from zmq_offload.errors import OffloadError, ProtocolError
from zmq_offload.plan import files
from zmq_offload.protocol import messages

ROOT = Path(__file__).parent.parent.parent
WRITTEN = Path(__file__).parent / "written_by_0_1"


def read_model(folder: Path) -> repository.ModelVersion:
    return repository.ModelVersion.from_json(json.loads((folder / "model.json").read_text()))


READERS: dict[str, Callable[[Path], Any]] = {
    "manifest.json": manifest.Manifest.read,
    "model.json": read_model,
    "plan.json": lambda folder: files.Plan.read(folder / "plan.json"),
}


def test_the_table_has_the_versions_of_the_code() -> None:
    rows = re.findall(r"^\| ([^|]+) \| (\d+) \|", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert {what: int(version) for what, version in rows} == {
        "wire protocol": messages.VERSION,
        "`model.json`": repository.FORMAT_VERSION,
        "`manifest.json`": manifest.FORMAT_VERSION,
        "plans and profiles of cuts": files.FORMAT_VERSION,
    }


def test_what_0_1_wrote_is_read() -> None:
    bundle = manifest.Manifest.read(WRITTEN)
    assert [region.model for region in bundle.offloaded] == [copy.model for copy in bundle.fallback] == ["mlp"]
    model = read_model(WRITTEN)
    assert (model.name, model.version, str(model.inputs[0])) == ("mlp", 1, "h2 FP32[?,16]")
    plan = files.Plan.read(WRITTEN / "plan.json")
    assert plan.cut and plan.sealed == ("w2",) and plan.model.inputs == {"x": (2, 8)}


@pytest.mark.parametrize("name", READERS)
def test_a_key_of_a_later_release_is_ignored_and_another_format_is_refused(name: str, tmp_path: Path) -> None:
    content = json.loads((WRITTEN / name).read_text())
    file = tmp_path / name
    file.write_text(json.dumps(content | {"key_of_a_later_release": 1}))
    READERS[name](tmp_path)
    file.write_text(json.dumps(content | {"format_version": 2}))
    with pytest.raises(OffloadError, match="format_version is 2, this release reads 1"):
        READERS[name](tmp_path)


def test_a_message_of_another_protocol_is_refused_with_both_versions() -> None:
    with pytest.raises(ProtocolError, match="protocol version 2 is not supported; use version 4"):
        messages.decode(b"\x02\x91\x32", messages.FROM_WORKER)
