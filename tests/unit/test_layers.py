"""The layout's rules: who may import whom, and what is installed."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("zmq_offload", "broker", "workers")
SHARED = (
    "addresses", "cores", "cpu", "dotenv", "errors", "extras", "grants", "handshake", "interrupts", "ipc", "keylist",
    "keys", "memory", "programs", "protocol", "repository", "settings", "suggest", "timers", "transport", "units",
    "variables",
)  # fmt: skip
"""What broker and workers may use of zmq_offload."""

PURE = [
    "broker/core.py",
    "broker/ledger.py",
    "broker/frontend.py",
    "broker/backend.py",
    "broker/admission.py",
    "broker/lifecycle.py",
    "zmq_offload/grants.py",
    "broker/queues.py",
    "broker/scheduler.py",
    "broker/liveness.py",
    "broker/state.py",
    "broker/events.py",
    "broker/report.py",
    "broker/invariants.py",
    "workers/session.py",
    "workers/loading.py",
    "workers/cores.py",
    "zmq_offload/session.py",
    "zmq_offload/timers.py",
    *(f"zmq_offload/plan/{name}.py" for name in ("costs", "rules", "search", "report")),
    "zmq_offload/units.py",
    "zmq_offload/suggest.py",
    "zmq_offload/byoc/choice.py",
    "zmq_offload/link/conditions.py",
    "zmq_offload/link/path.py",
    *(f"zmq_offload/protocol/{p.name}" for p in (ROOT / "zmq_offload/protocol").glob("*.py")),
]
IMPURE = {
    "zmq",
    "time",
    "datetime",
    "random",
    "secrets",
    "threading",
    "asyncio",
    "socket",
    "os",
    "subprocess",
    "select",
}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def test_the_top_level_is_as_decided() -> None:
    out = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    folders = {line.split("/")[0] for line in out.splitlines()}
    needed = {*PACKAGES, "tests", "pyproject.toml", "Procfile", "README.md", "LICENSE"}
    assert needed <= folders
    assert {f for f in folders if not f.startswith(".")} - needed <= {"docs", "examples", "CHANGELOG.md"}


@pytest.mark.parametrize(("package", "other"), [("broker", "workers"), ("workers", "broker")])
def test_broker_and_workers_do_not_know_each_other_and_share_little(package: str, other: str) -> None:
    for path in modules(package):
        for name in imports(path):
            top, _, rest = name.partition(".")
            assert top != other, f"{path} imports {name}"
            if top == "zmq_offload" and rest:
                assert rest.split(".")[0] in SHARED, f"{path} imports {name}"


def test_zmq_offload_does_not_import_broker_or_workers() -> None:
    for path in modules("zmq_offload"):
        assert not {name.split(".")[0] for name in imports(path)} & {"broker", "workers"}, path


def test_tvm_is_imported_where_it_may_be_and_nowhere_else() -> None:
    for package in PACKAGES:
        for path in modules(package):
            place = path.relative_to(ROOT).as_posix()
            if place.startswith(("zmq_offload/byoc/", "zmq_offload/compile/")) or place == "workers/executor.py":
                continue
            assert not {name.split(".")[0] for name in imports(path)} & {"tvm", "tvm_ffi"}, place


@pytest.mark.parametrize("place", PURE)
def test_decisions_have_no_socket_no_clock_and_no_randomness(place: str) -> None:
    assert not {name.split(".")[0] for name in imports(ROOT / place)} & IMPURE


WITHOUT = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"tvm", "tvm_ffi", "onnx", "onnxslim", "onnxruntime", "PIL"}:
            raise ImportError(f"{name} is not installed")
sys.meta_path.insert(0, Refuse())
"""


def without_extras(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", WITHOUT + code], cwd=ROOT, capture_output=True, text=True, check=False)


def test_client_broker_and_command_line_work_without_tvm() -> None:
    code = "import zmq_offload, broker.__main__, workers.__main__, workers.loop; from zmq_offload.cli import main; main"
    done = without_extras(code)
    assert done.returncode == 0, done.stderr


def test_load_without_tvm_says_what_to_install() -> None:
    done = without_extras("import zmq_offload\nzmq_offload.load('x', 'tcp://127.0.0.1:1')")
    assert "FailedPrecondition" in done.stderr
    assert "zmq-offload[tvm]" in done.stderr


def test_a_worker_without_tvm_says_what_to_install() -> None:
    code = "import sys; sys.argv = ['workers']; import os; os.environ['ZMQ_OFFLOAD_PARENT_FD'] = '0'\n"
    done = without_extras(code + "import workers.__main__\nsys.exit(workers.__main__.main())")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("workers: error:")
    assert "zmq-offload[tvm]" in done.stderr


@pytest.mark.parametrize(
    ("command", "extra"), [(["demo"], "demo"), (["compile", "m.onnx", "--cut", "t", "--name", "m"], "compile")]
)
def test_a_command_without_its_packages_says_what_to_install(command: list[str], extra: str) -> None:
    done = without_extras(f"from zmq_offload.cli import main\nsys.exit(main({command!r}))")
    assert done.returncode == 1
    assert done.stderr.startswith("zmq-offload: error: a package is missing")
    assert f"zmq-offload[{extra}]" in done.stderr
    assert len(done.stderr.splitlines()) == 1
