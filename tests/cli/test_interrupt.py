"""Stopping `compile`, `profile` and `plan`: one line, the signal's exit code, and no files left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from zmq_offload.cli.main import main
from zmq_offload.console.silence import silenced

IMPORTING = """
import importlib.abc, sys, time
class Slow(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "tvm":
            print("here", flush=True)
            time.sleep(60)
sys.meta_path.insert(0, Slow())
"""

IN_A_LIBRARY = """
import ctypes
import zmq_offload.compile.bundle as bundle
def stuck(*arguments):
    # Nothing wakes it, and no handler of Python's runs meanwhile: as in TVM's compiler.
    lock, library = ctypes.create_string_buffer(64), ctypes.CDLL(None)
    print("here", flush=True)
    library.pthread_mutex_lock(lock)
    library.pthread_mutex_lock(lock)
bundle.build_library = stuck
"""

LINKING = """
import os
os.environ["CXX"] = {linker!r}
"""

MAIN = """
import sys
from zmq_offload.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def linker(tmp_path: Path) -> Path:
    """A linker that never ends. It writes its process id."""
    script = tmp_path / "linker"
    script.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid.new\nmv {tmp_path}/pid.new {tmp_path}/pid\nexec sleep 60\n")
    script.chmod(0o755)
    return script


def started(patch: str, mlp: Path, tmp_path: Path, *more: str) -> subprocess.Popen[str]:
    (tmp_path / "temporary").mkdir(exist_ok=True)
    arguments = ["compile", str(mlp), "--input", "x=2,8", "--cut", "h2", "--name", "m", "-o", str(tmp_path / "dist")]
    path = os.pathsep.join(filter(None, sys.path))
    return subprocess.Popen(
        [sys.executable, "-c", patch + MAIN, *arguments, "--quiet", *more],
        env={**os.environ, "PYTHONPATH": path, "TMPDIR": str(tmp_path / "temporary")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(process: subprocess.Popen[str], file: Path) -> str:
    while not file.exists():
        try:
            process.wait(0.05)
        except subprocess.TimeoutExpired:
            continue
        raise AssertionError(f"ended with {process.returncode}: {process.communicate()}")
    return file.read_text()


def gone(pid: int) -> bool:
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


@pytest.mark.parametrize(
    ("patch", "number"),
    [(IMPORTING, signal.SIGINT), (IN_A_LIBRARY, signal.SIGINT), (IN_A_LIBRARY, signal.SIGTERM)],
    ids=["importing", "in a library", "in a library, SIGTERM"],
)
def test_a_signal_ends_a_command_with_one_line(patch: str, number: signal.Signals, mlp: Path, tmp_path: Path) -> None:
    process = started(patch, mlp, tmp_path)
    with process:
        assert process.stdout is not None and process.stdout.readline() == "here\n"
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (128 + number, "zmq-offload: interrupted\n")
    assert list((tmp_path / "temporary").iterdir()) == []
    assert list((tmp_path / "dist").glob(".*")) == []


def test_ctrl_c_that_ends_the_linker_first_is_not_reported_as_its_failure(
    linker: Path, mlp: Path, tmp_path: Path
) -> None:
    process = started(LINKING.format(linker=str(linker)), mlp, tmp_path)
    with process:
        child = int(wait_for(process, tmp_path / "pid"))
        os.kill(child, signal.SIGINT)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (128 + signal.SIGINT, "zmq-offload: interrupted\n")
    assert gone(child)
    assert list((tmp_path / "temporary").iterdir()) == []
    assert not (tmp_path / "dist").exists()


def test_a_running_linker_is_killed(linker: Path, mlp: Path, tmp_path: Path) -> None:
    process = started(LINKING.format(linker=str(linker)), mlp, tmp_path)
    with process:
        child = int(wait_for(process, tmp_path / "pid"))
        process.terminate()
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (128 + signal.SIGTERM, "zmq-offload: interrupted\n")
    assert gone(child)
    assert list((tmp_path / "temporary").iterdir()) == []


def test_files_of_a_killed_build_are_hidden_and_the_next_build_removes_them(
    linker: Path, mlp: Path, tmp_path: Path
) -> None:
    process = started(LINKING.format(linker=str(linker)), mlp, tmp_path)
    with process:
        child = int(wait_for(process, tmp_path / "pid"))
        process.kill()
        os.kill(child, signal.SIGKILL)
        process.communicate(timeout=60)
    left = [p.name for folder in ("dist", "temporary") for p in (tmp_path / folder).iterdir()]
    assert [name for name in left if not name.startswith(".") and name != "repository"] == []
    assert list((tmp_path / "dist/repository").iterdir()) == []
    with started("", mlp, tmp_path) as process:
        _, said = process.communicate(timeout=120)
    assert (process.returncode, said) == (0, "")
    assert sorted(p.name for p in (tmp_path / "dist").iterdir()) == ["device", "repository"]
    assert list((tmp_path / "temporary").iterdir()) == []


def test_libraries_print_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with silenced():
        os.write(2, b"[12:00:00] block_builder.cc:67: Warning: a line of C++\n")
        print("a line of ours", file=sys.stderr)
    os.write(2, b"afterwards\n")
    assert capfd.readouterr().err == "a line of ours\nafterwards\n"


def test_where_no_process_can_be_started_libraries_print(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError("Exec format error")

    monkeypatch.setattr(subprocess, "Popen", refused)
    with silenced():
        os.write(2, b"a line of C++\n")
    os.write(2, b"afterwards\n")
    assert capfd.readouterr().err == "a line of C++\nafterwards\n"


DYING = """
import os
import zmq_offload.compile.bundle as bundle
def die(*arguments):
    os.write(2, b"LLVM ERROR: no space left\\n")
    os._exit(1)
bundle.build_library = die
"""


def test_the_last_output_of_a_library_that_ends_the_process_is_shown(mlp: Path, tmp_path: Path) -> None:
    with started(DYING, mlp, tmp_path) as process:
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (1, "LLVM ERROR: no space left\n")


def test_verbose_shows_the_output_of_libraries(
    mlp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def chatty(*_: object) -> str:
        os.write(2, b"a line of C++\n")
        return "none"

    monkeypatch.setattr("zmq_offload.cli.cuts.table", chatty)
    arguments = ["compile", str(mlp), "--input", "x=2,8", "--list-cuts"]
    assert main(arguments) == 0
    assert capfd.readouterr().err == ""
    assert main([*arguments, "--verbose"]) == 0
    assert capfd.readouterr().err == "a line of C++\n"
