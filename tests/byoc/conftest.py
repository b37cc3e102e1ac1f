"""The network with three branches, split in several ways, each compiled once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import onnx_models
from zmq_offload.compile import Compiled, Region, compile_model

Split = Callable[..., Compiled]


@pytest.fixture(scope="session")
def branches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return onnx_models.branches(tmp_path_factory.mktemp("branches") / "branches.onnx")


@pytest.fixture(scope="session")
def split_branches(branches: Path, tmp_path_factory: pytest.TempPathFactory) -> Split:
    """`split_branches(*regions, batch=1)`: `branches` compiled with these regions. Tests must not change the files."""
    done: dict[str, Compiled] = {}

    def split(*regions: Region, batch: int | str = 1) -> Compiled:
        key = f"{regions} {batch}"
        if key not in done:
            folder = tmp_path_factory.mktemp("split")
            done[key] = compile_model(branches, inputs={"x": (batch, 3, 8, 8)}, regions=regions, output=folder)
        return done[key]

    return split
