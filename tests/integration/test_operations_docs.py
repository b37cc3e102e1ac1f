"""Each command of the operators' pages runs as it is written, on free ports, with a fabric that serves a model."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
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
    guided = {line for _, block in first_round() for line in block.splitlines()}
    return [(page, line) for line, page in found.items() if line not in guided]


def first_round() -> list[tuple[str, str]]:
    """The blocks of the guide, each with its language."""
    text = (ROOT / "docs" / "operations.md").read_text().partition("## A first round\n")[2].partition("\n## ")[0]
    return re.findall(r"```(sh|toml)\n(.*?)```", text, re.S)


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


def test_the_first_round(folder: Path, tmp_path: Path) -> None:
    """All that the guide says, in its order, with a smaller model, shorter loads, and free ports."""
    model = tmp_path / "dist" / "repository" / "ocr"
    shutil.copytree(folder / "dist" / "repository" / "ocr" / "1", model / "1")
    shutil.copytree(folder / "dist" / "device", tmp_path / "dist" / "device")
    shutil.copy(folder / "m.onnx", tmp_path / "model.onnx")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ZMQ_OFFLOAD_")}
    environment |= {f"ZMQ_OFFLOAD_{name}": "tcp://127.0.0.1:0" for name in ("FRONTEND", "BACKEND")}
    environment |= {"ZMQ_OFFLOAD_HTTP": "127.0.0.1:0", "ZMQ_OFFLOAD_GRPC": "127.0.0.1:0", "ZMQ_OFFLOAD_REFRESH": "0.1"}
    metrics, said = "", {}
    with ExitStack() as programs:

        def start(words: list[str]) -> str:
            """Start a program that runs until the end of the guide. Returns its line `ready`."""
            process = subprocess.Popen(words, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
            programs.callback(stopped, process)
            assert process.stdout is not None
            return "" if words[-1].endswith("repository") else process.stdout.readline()

        for language, block in first_round():
            if language == "toml":
                (model / "config.toml").write_text(block)
                continue
            for line in block.splitlines():
                short = line.replace("127.0.0.1:9464", "127.0.0.1:0").replace("--processes 4", "--processes 2")
                short = re.sub(r"--duration \d+", "--duration 0.3", short)
                words = [*command(), *shlex.split(short)[1:]]
                if line.startswith("curl "):
                    assert "zmq_offload_model_workers" in urllib.request.urlopen(metrics).read().decode()
                elif line.split()[1] in PROGRAMS:
                    ready = dict(re.findall(r"(\w+)=(\S+)", start(words)))
                    if "metrics" in ready:
                        metrics = f"http://{ready['metrics']}/metrics"
                        environment["ZMQ_OFFLOAD_FRONTEND"] = ready["frontend"]
                        environment["ZMQ_OFFLOAD_BROKER"] = ready["backend"]
                    elif "http" in ready:
                        with Client(environment["ZMQ_OFFLOAD_FRONTEND"]) as client:
                            eventually(client.models, timeout=30)
                else:
                    if "compile" in words:
                        words = [{"x=1,3,320,320": "x=2,8", "TENSOR": "h2"}.get(word, word) for word in words]
                        words += ["--until", "h4"]
                    done = subprocess.run(
                        words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
                    )
                    assert done.returncode == 0 or "doctor" in words, (line, done.stdout, done.stderr)
                    said[line] = done.stdout
                    if "compile" in words:
                        with Client(environment["ZMQ_OFFLOAD_FRONTEND"]) as client:
                            eventually(lambda: len(client.models()) == 2, timeout=30)
    assert "0.5 of the requests" in said["zmq-offload status"]
    assert re.search(r"2  yes +by 1 worker +yes +stable", said["zmq-offload models list"])


def curls() -> list[str]:
    """The calls by curl of the pages."""
    text = "".join((ROOT / "docs" / f"{page}.md").read_text() for page in PAGES)
    blocks = "".join(re.findall(r"```(?:ba)?sh\n(.*?)```", text, re.S))
    return [line for line in blocks.replace("\\\n", " ").splitlines() if line.startswith("curl ")]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_calls_by_curl() -> None:
    assert len(curls()) >= 3
    free = {"FRONTEND": "tcp://127.0.0.1:0", "BACKEND": "tcp://127.0.0.1:0", "GRPC": "none", "HTTP": "127.0.0.1:0"}
    environment = os.environ | {f"ZMQ_OFFLOAD_{name}": value for name, value in free.items()}
    words = [*command(), "gateway", "--with-broker", "--dashboard", "--metrics", "127.0.0.1:0"]
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) as gateway:
        try:
            assert gateway.stdout is not None
            ready = dict(re.findall(r"(\w+)=(\S+)", gateway.stdout.readline()))
            with running_workers(ready["backend"], "--executor", "echo"), Client(ready["frontend"]) as client:
                eventually(client.models, timeout=30)
                for line in curls():
                    called = line.replace("127.0.0.1:9464", ready["metrics"]).replace("127.0.0.1:8000", ready["http"])
                    called = called.replace("https://gateway.example:8000", f"http://{ready['http']}")
                    call = [*shlex.split(called), "--silent", "--fail", "--max-time", "2"]
                    done = subprocess.run(call, capture_output=True, text=True, check=False)
                    if "events" in line:
                        assert done.returncode == 28 and "event: state" in done.stdout, "it goes on until it is stopped"
                    else:
                        assert done.returncode == 0 and done.stdout, (line, done.stderr)
        finally:
            gateway.terminate()


def stopped(process: subprocess.Popen[str]) -> None:
    """End a program as Ctrl-C does."""
    process.send_signal(signal.SIGINT)
    try:
        process.communicate(timeout=30)
        assert process.returncode == 0, process.args
    finally:
        process.kill()


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
