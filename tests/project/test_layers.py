"""The rules of the layout: which rooms may import which, and what works without the extras."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("zmq_offload", "broker", "workers")


def test_the_top_level_is_as_decided() -> None:
    out = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    folders = {line.split("/")[0] for line in out.splitlines()}
    needed = {*PACKAGES, "tests", "pyproject.toml", "Procfile", "README.md", "LICENSE"}
    assert needed <= folders
    others = {"docs", "examples", "mkdocs.yml", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"}
    assert {f for f in folders if not f.startswith(".")} - needed <= others


def test_the_import_contracts_of_pyproject_hold() -> None:
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run(
        [sys.executable, "-c", code, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_module_that_calls_itself_pure_is_under_the_contract() -> None:
    configuration = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = configuration["tool"]["importlinter"]["contracts"]
    (pure,) = (c["source_modules"] for c in contracts if c["name"].startswith("Decisions are pure"))
    says = [
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py"  # a room's text names the pure ones among its modules
        and re.search(r"\bpure\b", ast.get_docstring(ast.parse(path.read_text())) or "", re.IGNORECASE)
    ]
    assert says
    assert not [module for module in says if not f"{module}.".startswith(tuple(f"{room}." for room in pure))]


WITHOUT = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {
            "tvm", "tvm_ffi", "onnx", "onnxruntime", "PIL", "matplotlib", "plotly", "rich", "rich_argparse",
            "shtab", "grpc", "google",
        }:
            raise ImportError(f"{name} is not installed")
sys.meta_path.insert(0, Refuse())
"""


def without_extras(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", WITHOUT + code], cwd=ROOT, capture_output=True, text=True, check=False)


def test_client_broker_and_command_line_work_without_tvm() -> None:
    code = "import zmq_offload, broker.__main__, workers.__main__, workers.loop, zmq_offload.cli.main"
    done = without_extras(code)
    assert done.returncode == 0, done.stderr


def test_load_without_tvm_says_what_to_install() -> None:
    done = without_extras("import zmq_offload\nzmq_offload.load('x', 'tcp://127.0.0.1:1')")
    assert "FailedPrecondition" in done.stderr
    assert "zmq-offload[tvm]" in done.stderr


def test_servers_are_called_without_packages_that_their_transport_does_not_need() -> None:
    connects = "from zmq_offload.transports.client import connect\n"
    plain = [f"{scheme}://127.0.0.1:1" for scheme in ("http", "tfs+http", "tvmrpc", "tcp")]
    done = without_extras(f"{connects}connect({plain}).close()")
    assert done.returncode == 0, done.stderr
    done = without_extras(f"{connects}connect('grpc://127.0.0.1:1')")
    assert "FailedPrecondition" in done.stderr and "zmq-offload[grpc]" in done.stderr
    by_grpc = ["grpc://127.0.0.1:1", "tfs+grpc://127.0.0.1:1"]
    code = f"{connects}connect({by_grpc}).close()\nassert not {{'google.protobuf', 'tvm'}} & {{*sys.modules}}"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_worker_without_tvm_says_what_to_install() -> None:
    code = "import os, sys; sys.argv = ['workers']\n"
    code += "os.environ.update(ZMQ_OFFLOAD_PARENT_FD='0', ZMQ_OFFLOAD_SEAT='0,0')\n"
    done = without_extras(code + "import workers.__main__\nsys.exit(workers.__main__.main())")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("workers: error:")
    assert "zmq-offload[tvm]" in done.stderr


@pytest.mark.parametrize(
    ("command", "extra"), [(["demo"], "demo"), (["compile", "m.onnx", "--cut", "t", "--name", "m"], "compile")]
)
def test_a_command_without_its_packages_says_what_to_install(command: list[str], extra: str) -> None:
    done = without_extras(f"from zmq_offload.cli.main import main\nsys.exit(main({command!r}))")
    assert done.returncode == 1
    assert done.stderr.startswith("zmq-offload: error: a package is missing")
    assert f"zmq-offload[{extra}]" in done.stderr
    assert len(done.stderr.splitlines()) == 1
