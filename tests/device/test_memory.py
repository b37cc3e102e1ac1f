"""Memory, mappings and disk space of libraries come back when they are dropped, in a worker and in a device."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.support import onnx_models
from tests.support.local_client import LocalClient
from zmq_offload.artifacts.repository import LIBRARY, loadable
from zmq_offload.compile import Compiled
from zmq_offload.device.model import load

ROUNDS = 12
"""Libraries of 8 MB each, one after the other."""

COMMON = f"""
import os, shutil, sys
from pathlib import Path
import numpy as np

source, place = map(Path, sys.argv[1:])
sizes, held = [], []

def note():
    maps = Path("/proc/self/maps").read_text()
    assert "(deleted)" not in maps and str(place) not in maps, "a library is still mapped"
    sizes.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))

for number in range({ROUNDS}):
    shutil.copytree(source, place)
    result = run()
    if number < 2:
        held.append((result, result.copy()))
    del result
    shutil.rmtree(place)
    note()
assert all(np.array_equal(kept, copy) for kept, copy in held), "an output that is held changed"
print(sizes[2], sizes[-1])
"""

WORKER = """
def run():
    executor = GraphExecutor(Repository(place), "wide", 1)
    ((result,),) = executor.run([[np.ones((1, 1448), "f4")]])
    del executor
    release_memory()
    return result

from workers.executor import GraphExecutor
from zmq_offload.runtime.machine import release_memory
from zmq_offload.artifacts.repository import Repository
"""

DEVICE = """
def run():
    model = load(place, client=NoClient(), offload="never")
    result = model(np.ones((1, 1448), "f4"))
    if len(sizes) % 2:  # otherwise it is dropped
        model.close()
    return result

from zmq_offload.device.model import load

class NoClient:
    def infer(self, *_, **__):
        raise AssertionError("nothing is offloaded")
"""


def growth(program: str, source: Path, place: Path) -> int:
    """How many bytes more the process has after the last library than after the third."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program + COMMON, str(source), str(place)],
        env={**os.environ, "TVM_USE_RUNTIME_LIB": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    third, last = map(int, done.stdout.split())
    return last - third


def test_a_worker_gives_back_what_a_removed_version_used(compiled_wide: Compiled, tmp_path: Path) -> None:
    assert growth(WORKER, compiled_wide.subgraphs[0].parent.parent, tmp_path / "repository") < 8 << 20


def test_a_device_gives_back_what_a_bundle_used(compiled_wide: Compiled, tmp_path: Path) -> None:
    assert growth(DEVICE, compiled_wide.device, tmp_path / "device") < 8 << 20


def test_closing_leaves_a_call_that_runs_to_end(compiled_mlp: Compiled) -> None:
    class Closing(LocalClient):
        def infer(self, *args: object, **options: object) -> dict[str, np.ndarray]:  # type: ignore[override]
            model.close()
            return super().infer(*args, **options)  # type: ignore[arg-type]

    x = onnx_models.random(2, 8)
    repository = compiled_mlp.subgraphs[0].parent.parent
    expected = load(compiled_mlp.device, client=LocalClient(repository))(x)
    model = load(compiled_mlp.device, client=Closing(repository))
    np.testing.assert_array_equal(model(x), expected)


def test_each_file_has_its_own_name_to_load_it_by_and_always_the_same(tmp_path: Path) -> None:
    names = set()
    for _ in range(3):
        fresh = tmp_path / "fresh"
        fresh.write_bytes(b"")
        os.link(fresh, tmp_path / f"kept{len(names)}")  # keeps the inode in use, as a mapping does
        fresh.replace(tmp_path / LIBRARY)
        name = loadable(tmp_path / LIBRARY)
        assert name == loadable(tmp_path / LIBRARY) and Path(name).samefile(tmp_path / LIBRARY)
        assert re.sub(r"/(\./|/)+", "/", name) == str((tmp_path / LIBRARY).resolve()) and len(name) < 1000
        names.add(name)
    assert len(names) == 3
