"""Many models in one worker."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tests.support.compiled import copies
from tests.support.processes import Process, eventually, running_broker, running_workers
from zmq_offload import Client
from zmq_offload.artifacts.repository import LIBRARY

if TYPE_CHECKING:
    from zmq_offload.compile import Compiled

COUNT, BROKEN = 50, 7


def resident(supervisor: Process) -> int:
    """Bytes that the worker of a supervisor has in memory."""
    pid = supervisor.wait_for(r"worker 0 is process (\d+)")[1]
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_fifty_models_are_served_and_a_damaged_one_keeps_none_back(compiled_mlp: Compiled, tmp_path: Path) -> None:
    source = compiled_mlp.device.parent / "repository" / "mlp" / "1"
    fifty = copies(source, tmp_path / "fifty", COUNT)
    library = fifty / f"m{BROKEN}" / "1" / LIBRARY
    library.write_bytes(library.read_bytes()[:-100])
    one = copies(source, tmp_path / "one", 1)
    with (
        running_broker() as fabric,
        running_workers(fabric.backend, "--repository", str(fifty)) as many,
        running_workers(fabric.backend, "--repository", str(one)) as few,
        Client(fabric.frontend) as client,
    ):
        names = {f"m{number}" for number in range(COUNT) if number != BROKEN}
        eventually(lambda: {model["name"] for model in client.models()} == names)
        many.wait_for(rf"m{BROKEN} version 1 is not served: .* is damaged")
        answers = [client.infer(name, {"h2": np.full((2, 16), 1, np.float32)}) for name in sorted(names)]
        for answer in answers[1:]:
            np.testing.assert_array_equal(answer["h4"], answers[0]["h4"])
        eventually(lambda: len(client.status()["workers"]) == 2)
        each = (resident(many) - resident(few)) / (len(names) - 1)
        assert each < 200_000, f"a model of {library.stat().st_size} bytes takes {each:,.0f}"
