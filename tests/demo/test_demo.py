"""`zmq-offload demo` as a user runs it: its output, and that it leaves no processes and files, however it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from tests.support.leftovers import MARK_VARIABLE, new_mark, processes_marked
from tests.support.processes import ROOT, eventually
from zmq_offload.cli.main import main
from zmq_offload.demo import model as network
from zmq_offload.demo.build import Job
from zmq_offload.errors import FailedPrecondition


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def ink_detector(folder: Path) -> Path:
    """A small network in place of the demo's: dark pixels are text. `features` is the tensor to cut at."""
    darkness = np.full((4, 3, 2, 2), -1 / 12, np.float32)
    spread = np.full((4, 1, 2, 2), 1.0, np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "darkness"], ["mean"], strides=[2, 2]),
            helper.make_node("Relu", ["mean"], ["features"]),
            helper.make_node("ConvTranspose", ["features", "spread"], ["logits"], strides=[2, 2]),
            helper.make_node("Sub", ["logits", "half"], ["centered"]),
            helper.make_node("Sigmoid", ["centered"], ["map"]),
        ],
        "ink",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, "h", "w"])],
        [helper.make_tensor_value_info("map", TensorProto.FLOAT, ["n", 1, "h", "w"])],
        [
            numpy_helper.from_array(value, name)
            for name, value in (("darkness", darkness), ("spread", spread), ("half", np.array(2, np.float32)))
        ],
    )
    file = folder / "ink.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)
    return file


@pytest.fixture(scope="module")
def picture(folder: Path) -> Path:
    """Two lines of ink."""
    image = Image.new("RGB", (160, 96), "white")
    image.paste("black", (16, 16, 144, 28))
    image.paste("black", (16, 60, 80, 76))
    image.save(folder / "ink.png")
    return folder / "ink.png"


def run(*arguments: str, timeout: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "zmq_offload", "demo", *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def size(picture: Path) -> tuple[int, int]:
    with Image.open(picture) as image:
        return image.size


@pytest.fixture
def arguments(ink_detector: Path, picture: Path, folder: Path, tmp_path: Path) -> list[str]:
    """Arguments for a demo of the small network, with a cache that the tests share."""
    files = ["--model", str(ink_detector), "--image", str(picture), "--cache", str(folder / "cache")]
    return [*files, "--cut", "features", "-o", str(tmp_path / "found.png")]


def test_it_runs_and_a_second_run_compiles_nothing(
    arguments: list[str], ink_detector: Path, folder: Path, tmp_path: Path
) -> None:
    """The first run finds what an earlier one left damaged, and compiles it again."""
    mark = new_mark()
    damaged = folder / "cache" / Job(ink_detector, (160, 96), ("features",)).key() / "device"
    damaged.mkdir(parents=True, exist_ok=True)
    (damaged / "manifest.json").write_text("{}")
    # Variables for the user's own fabric do not affect the demo.
    keys = dict.fromkeys(("ZMQ_OFFLOAD_CLIENT_KEY", "ZMQ_OFFLOAD_BROKER_KEY"), "/no/such/key")
    mine = {MARK_VARIABLE: mark, "ZMQ_OFFLOAD_EXECUTOR": "echo", "ZMQ_OFFLOAD_FRONTEND": "tcp://127.0.0.1:1"} | keys
    first = run(*arguments, **mine)
    assert first.returncode == 0, first.stderr
    assert "compile the uncut model" in first.stderr
    for shown in (
        "sent           61,440 bytes  features FP32[1,4,48,80]",
        "received       61,440 bytes  map FP32[1,1,96,160]",
        "9 items of 3 devices at a time on 2 workers",
        "2 text regions found",
    ):
        assert shown in first.stdout
    assert len(re.findall(r"the uncut model in TVM .* PASS|ONNX Runtime .* PASS", first.stdout)) == 2
    assert size(tmp_path / "found.png") == (160, 96)
    second = run(*arguments, "--frames", "1", **mine)
    assert second.returncode == 0, second.stderr
    assert "compile" not in second.stderr
    assert "1 item of 1 device on 2 workers" in second.stdout
    assert processes_marked(mark) == {}
    assert list((folder / "cache").iterdir()) == [damaged.parent]  # no log, no draft


@contextmanager
def started(arguments: Sequence[str], mark: str) -> Iterator[subprocess.Popen[str]]:
    """A demo in a process group of its own, as a shell starts it."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "zmq_offload", "demo", *arguments],
        cwd=ROOT,
        env=os.environ | {MARK_VARIABLE: mark},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def read_until(process: subprocess.Popen[str], pattern: str) -> str:
    assert process.stdout is not None
    read = []
    for line in process.stdout:
        read.append(line)
        if re.search(pattern, line):
            return line
    pytest.fail(f"it ended without {pattern!r}:\n{''.join(read)}")


@pytest.mark.parametrize(
    ("number", "stage", "cached", "many"),
    [
        pytest.param(signal.SIGINT, "^cut ", False, 2, id="before compiling"),
        pytest.param(signal.SIGINT, "import and split", False, 2, id="compiling"),
        pytest.param(signal.SIGINT, "^compiled in", True, 1, id="starting the fabric"),
        pytest.param(signal.SIGINT, "start a broker", True, 5, id="running frames"),
        pytest.param(signal.SIGTERM, "start a broker", True, 5, id="running frames, SIGTERM"),
    ],
)
def test_a_signal_at_any_stage_leaves_nothing_behind(
    number: signal.Signals, stage: str, cached: bool, many: int, arguments: list[str], tmp_path: Path
) -> None:
    """The stage begins with a line that matches `stage`, and when `count` processes run, with the demo."""
    mark, cache = new_mark(), tmp_path / "cache"
    arguments = [*arguments, "--frames", "1000000", *([] if cached else ["--cache", str(cache)])]
    with started(arguments, mark) as process:
        read_until(process, stage)
        eventually(lambda: len(processes_marked(mark)) >= many)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # Ctrl-C goes to the whole foreground group
        else:
            process.send_signal(number)
        said, _ = process.communicate(timeout=30)
        assert process.returncode == 128 + number
        assert "Traceback" not in said
    assert processes_marked(mark) == {}
    assert not cache.exists() or list(cache.iterdir()) == []


def test_a_second_ctrl_c_does_not_interrupt_the_clean_up(arguments: list[str]) -> None:
    mark = new_mark()
    with started([*arguments, "--frames", "1000000"], mark) as process:
        read_until(process, "start a broker")
        for _ in range(20):
            process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
        assert process.returncode == 130
    assert processes_marked(mark) == {}


def test_when_a_process_of_the_fabric_dies_it_says_so_and_leaves_nothing_behind(arguments: list[str]) -> None:
    mark = new_mark()
    with started([*arguments, "--frames", "1000000"], mark) as process:
        read_until(process, "start a broker")
        (broker,) = [pid for pid, command in processes_marked(mark).items() if " broker " in command]
        os.kill(broker, signal.SIGKILL)
        said, _ = process.communicate(timeout=30)
        assert process.returncode == 1
        last = said.splitlines()[-1]
    assert "the broker ended with code -9" in last
    (logs,) = re.findall(r"the logs of broker and workers are in (\S+)\)", last)
    assert "is served" in (Path(logs) / "workers.log").read_text()
    assert processes_marked(mark) == {}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (["--image", "no-such.png"], "no-such.png cannot be read as a picture"),
        (["--model", "no-such.onnx"], "--model no-such.onnx is not a file"),
        (["--cut", "featurse"], "no tensor 'featurse'; did you mean 'features'"),
        (["-o", "/dev/null/x.png"], "x.png cannot be written"),
        (["--cache", "/dev/null/x"], "cannot be written: Not a directory; choose --cache DIR"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    wrong: list[str], says: str, arguments: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", *arguments, *wrong]) == 1
    said = capfd.readouterr().err
    assert says in said.splitlines()[-1]
    assert "Traceback" not in said


def test_the_real_network_on_a_small_page_finds_its_text(folder: Path, tmp_path: Path) -> None:
    try:
        network.find_model()
    except FailedPrecondition as error:
        pytest.skip(error.message)
    done = run("--side", "256", "--frames", "3", "--cache", str(folder / "real"), "-o", str(tmp_path), timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"(\d+) text regions found", done.stdout)
    assert found and int(found[1]) >= 30
    assert size(tmp_path / "text-regions.png") == (768, 1024)
