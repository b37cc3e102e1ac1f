"""`zmq_offload.testing.Fabric`: a broker and workers for the tests of programs that use this library."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support.leftovers import MARK_VARIABLE, new_mark, processes_marked
from tests.support.processes import ROOT
from zmq_offload import Client
from zmq_offload.errors import FailedPrecondition, Internal
from zmq_offload.testing import Fabric

X = np.arange(12, dtype="f4")


def test_a_fabric_serves_in_its_body_and_leaves_no_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mark = new_mark()
    monkeypatch.setenv(MARK_VARIABLE, mark)
    monkeypatch.setenv("ZMQ_OFFLOAD_CLIENT_KEY", "/no/such/file")  # the keys of the user's own broker
    monkeypatch.setenv("ZMQ_OFFLOAD_FRONTEND", "tcp://192.0.2.1:1")
    with Fabric(workers=2, logs=tmp_path) as fabric:
        assert processes_marked(mark)
        with Client(fabric.frontend) as client:
            np.testing.assert_array_equal(client.infer("echo", {"x": X})["x"], X)
            assert [(model["name"], model["workers"]) for model in client.models()] == [("echo", 2)]
        fabric.check()
        assert fabric._children is not None
        broker = fabric._children._running[0].process
        broker.kill()
        broker.wait()
        with pytest.raises(Internal, match="the broker ended with code -9"):
            fabric.check()
    assert not processes_marked(mark)
    assert os.environ["ZMQ_OFFLOAD_CLIENT_KEY"] == "/no/such/file"
    assert {log.name for log in tmp_path.iterdir()} == {"broker.log", "workers.log"}


def test_a_program_that_does_not_start_says_why_and_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    mark = new_mark()
    monkeypatch.setenv(MARK_VARIABLE, mark)
    wrong = ["--no-such-option"]
    for program, fabric in {"broker": Fabric(broker_options=wrong), "workers": Fabric(worker_options=wrong)}.items():
        with pytest.raises(Internal, match=f"the {program} did not start: .*unknown option --no-such-option"), fabric:
            pytest.fail("it started")
    assert not processes_marked(mark)


def test_a_missing_repository_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="missing is not a folder"):
        Fabric(tmp_path / "missing")


def test_a_link_imports_no_client() -> None:
    """The command `link` starts faster without a client, which imports NumPy."""
    code = "import sys, zmq_offload.testing.link; sys.exit('numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    with pytest.raises(ImportError, match="cannot import name 'Nothing'"):
        from zmq_offload.testing import Nothing  # type: ignore[attr-defined]  # noqa: F401
