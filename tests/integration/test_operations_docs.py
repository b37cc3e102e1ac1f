"""Each command of the operators' pages runs as it is written, on free ports, with a fabric that serves a model."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import onnx_models
from tests.support.processes import ROOT, eventually, running_broker, running_workers
from zmq_offload import Client
from zmq_offload.compile import compile_model
from zmq_offload.console.programs import command
from zmq_offload.testing import Fabric

PAGES = ("operations", "monitoring", "traces", "dashboard", "configuration")
PROGRAMS = ("broker", "worker", "gateway", "dashboard")
"""Commands that run until they are stopped."""


def commands() -> list[tuple[str, str]]:
    """(page, command) of each line of a shell example that starts zmq-offload; once, if several pages have it."""
    found: dict[str, str] = {}
    for page in PAGES:
        blocks = re.findall(r"```(?:ba)?sh\n(.*?)```", (ROOT / "docs" / f"{page}.md").read_text(), re.S)
        for line in "".join(blocks).replace("\\\n", " ").splitlines():
            if line.startswith("zmq-offload ") and ">" not in line:
                found.setdefault(line, page)
    return [(page, line) for line, page in found.items()]


def test_each_page_has_commands_that_run() -> None:
    assert {page for page, _ in commands()} == set(PAGES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the commands: a repository with four versions."""
    folder = tmp_path_factory.mktemp("operations")
    path = onnx_models.mlp(folder / "m.onnx")
    compile_model(path, inputs={"x": (2, 8)}, cut=["h2"], until=["h4"], name="ocr", output=folder / "dist")
    model = folder / "dist" / "repository" / "ocr"
    for version in (2, 3, 4):
        shutil.copytree(model / "1", model / str(version))
        described = json.loads((model / "1" / "model.json").read_text()) | {"version": version}
        (model / str(version) / "model.json").write_text(json.dumps(described))
    return folder


def example_of_options(fabric: Fabric | None) -> str:
    """The documentation's file of options, for a broker or for what connects to that of a fabric."""
    (example,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs/configuration.md").read_text(), re.S)
    if fabric is not None:
        example = example.replace("tcp://127.0.0.1:5555", fabric.frontend).replace(
            "tcp://127.0.0.1:5556", fabric.backend
        )
    return re.sub(r"127\.0\.0\.1:(5555|5556|8000)", "127.0.0.1:0", example).replace('"auto"', "1")


@pytest.fixture(scope="module")
def fabric(folder: Path) -> Iterator[Fabric]:
    repository = str(folder / "dist" / "repository")
    with (
        running_broker() as fabric,
        running_workers(fabric.backend, "--repository", repository, "--refresh", "0.1", "--threads", "1"),
    ):
        with Client(fabric.frontend) as client:
            eventually(lambda: len(client.models()) == 4, timeout=60)
        yield fabric


@pytest.mark.parametrize(("page", "line"), commands())
def test_a_command_of_the_documentation(page: str, line: str, folder: Path, fabric: Fabric) -> None:
    words = shlex.split(line, comments=True)[1:]
    program = words[0] in PROGRAMS
    (folder / "fabric.toml").write_text(example_of_options(None if words[0] == "broker" else fabric))
    free, frontend = "tcp://127.0.0.1:0", fabric.frontend.removeprefix("tcp://")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ZMQ_OFFLOAD_")} | {
        "ZMQ_OFFLOAD_FRONTEND": fabric.frontend if words[0] != "broker" else free,
        "ZMQ_OFFLOAD_BACKEND": free,
        "ZMQ_OFFLOAD_BROKER": fabric.backend,
        "ZMQ_OFFLOAD_HTTP": "127.0.0.1:0",
        "ZMQ_OFFLOAD_GRPC": "127.0.0.1:0",
        "ZMQ_OFFLOAD_DASHBOARD": "127.0.0.1:0",
        "ZMQ_OFFLOAD_PROCESSES": "1",
    }
    if "--with-broker" in words:
        environment["ZMQ_OFFLOAD_FRONTEND"] = free
    place = "127.0.0.1:0" if program else frontend
    words = [re.sub(r"(?<!http://)(127\.0\.0\.1|\*|edge-\d):\d+", place, word) for word in words]
    if words[0] in ("gateway", "dashboard") and "--broker" in words:
        at = words.index("--broker") + 1
        words[at] = ",".join([fabric.frontend] * len(words[at].split(",")))
    with subprocess.Popen(
        [*command(), *words], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        try:
            if not program and "--watch" not in words:
                output, _ = process.communicate(timeout=60)
                assert process.returncode in ((0, 1) if words[0] == "doctor" else (0,)), output
                return
            ready = r"^ready |connected to broker|is served$|^broker "
            lines = []
            for text in process.stdout:
                lines.append(text)
                if re.search(ready, text):
                    break
            else:
                pytest.fail(f"{line} ended: {''.join(lines)}")
            process.send_signal(signal.SIGTERM if program else signal.SIGINT)
            output, _ = process.communicate(timeout=60)
            assert process.returncode in ((0,) if program else (0, 130)), "".join(lines) + output
        finally:
            process.kill()
