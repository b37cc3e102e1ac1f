"""examples/cpp: a program in C++ runs device bundles as Python does, and says what is wrong when something is."""

from __future__ import annotations

import importlib.util
import json
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import onnxruntime
import pytest
import zmq

import zmq_offload
from tests.arm.root import Root
from tests.support import onnx_models
from tests.support.processes import ROOT, Fabric, eventually, running_broker, running_workers
from zmq_offload import Client
from zmq_offload.artifacts.manifest import Manifest
from zmq_offload.compile import Compiled, Region, compile_model
from zmq_offload.protocol.payload import encode_tensors

SOURCES = ROOT / "examples" / "cpp"


def package(name: str) -> Path:
    """The folder of a package, which is not imported."""
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def libzmq() -> Path:
    """The library that pyzmq uses."""
    bundled = sorted((package("zmq").parent / "pyzmq.libs").glob("libzmq*.so*"))
    if not bundled:
        pytest.skip("this pyzmq has no libzmq of its own; its wheels have")
    return bundled[0]


def build(folder: Path, *options: str) -> Path:
    """The program. Skips, by name, without what builds it."""
    for tool in ("cmake", "make", "g++"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    for step in (["cmake", "-S", str(SOURCES), "-B", str(folder), *options], ["make", "-C", str(folder)]):
        done = subprocess.run(step, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "warning:" not in done.stderr, done.stderr
    return folder / "offload"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tvm, ffi = package("tvm"), package("tvm_ffi")
    return build(tmp_path_factory.mktemp("cpp"), f"-DTVM={tvm}", f"-DTVM_FFI={ffi}", f"-DZMQ={libzmq()}")


@dataclass
class Case:
    """A device bundle, and inputs for it."""

    device: Path
    inputs: dict[str, np.ndarray]


@pytest.fixture(scope="module")
def cases(
    compiled_mlp: Compiled, compiled_wide: Compiled, diamond: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Case]:
    folder = tmp_path_factory.mktemp("cases")
    image = {"x": onnx_models.random(1, 3, 32, 32, seed=9)}
    branches = onnx_models.branches(folder / "branches.onnx")
    shapes = {"x": (1, 3, 32, 32)}
    heads = [Region("left", cut=["features"], until=["left"]), Region("right", cut=["features"], until=["right"])]
    twice = [Region("one", cut=["a1", "b"], until=["s"]), Region("two", cut=["t"], until=["v"])]
    compile_model(branches, inputs=shapes, regions=heads, output=folder / "halves")
    compile_model(branches, inputs=shapes, cut=["features"], name="half", wire="float16", output=folder / "encoded")
    compile_model(diamond, regions=twice, output=folder / "twice")
    pair = {"a": onnx_models.random(4, 6, seed=7), "b": onnx_models.random(4, 6, seed=8)}
    return {
        "one region": Case(compiled_mlp.device, {"x": onnx_models.random(2, 8, seed=7)}),
        "large frames": Case(compiled_wide.device, {"x": onnx_models.random(1, 1448, seed=3)}),
        "calls in halves": Case(folder / "halves" / "device", image),
        "float16 on the wire": Case(folder / "encoded" / "device", image),
        "two inputs and outputs, two regions": Case(folder / "twice" / "device", pair),
    }


@pytest.fixture(scope="module")
def served(cases: dict[str, Case], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fabric]:
    repository = tmp_path_factory.mktemp("served")
    for case in cases.values():
        shutil.copytree(case.device.parent / "repository", repository, dirs_exist_ok=True)
    with running_broker() as fabric, running_workers(fabric.backend, "--repository", str(repository)):
        with Client(fabric.frontend) as client:
            eventually(lambda: len(client.models()) == 7, timeout=60)
        yield fabric


def run(
    program: Path, case: Case, broker: str, folder: Path, *options: str, emulator: list[str] | None = None
) -> subprocess.CompletedProcess[str]:
    words = [*(emulator or []), str(program), str(case.device), broker, "--output", str(folder), *options]
    for name, array in case.inputs.items():
        file = folder / f"{name}.input"
        file.write_bytes(array.tobytes())
        words.append(f"{name}={file}")
    return subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)


def outputs(case: Case, folder: Path) -> list[np.ndarray]:
    """What the program wrote, with the shapes of the manifest."""
    specs = Manifest.read(case.device).outputs
    files = [(folder / f"{at}.bin").read_bytes() for at in range(len(specs))]
    return [np.frombuffer(data, spec.dtype).reshape(spec.shape) for data, spec in zip(files, specs, strict=True)]


@pytest.mark.device
@pytest.mark.parametrize(
    "name",
    ["one region", "large frames", "calls in halves", "float16 on the wire", "two inputs and outputs, two regions"],
)
def test_it_computes_what_python_does(
    name: str, program: Path, cases: dict[str, Case], served: Fabric, tmp_path: Path
) -> None:
    case = cases[name]
    done = run(program, case, served.frontend, tmp_path, "--repeat", "3")
    assert done.returncode == 0, done.stderr
    with zmq_offload.load(case.device, served.frontend) as model:
        expected = model(*case.inputs.values())
    expected = expected if isinstance(expected, (list, tuple)) else [expected]
    found = outputs(case, tmp_path)
    for got, want in zip(found, expected, strict=True):
        np.testing.assert_array_equal(got, want)
    lines = done.stdout.splitlines()
    assert lines == lines[: len(found)] * 3
    shown = [float(word) for word in lines[0].split("] ")[1].split()]
    np.testing.assert_allclose(shown, found[0].ravel()[:8], rtol=1e-4)


@pytest.mark.device
def test_what_is_wrong_with_a_call_is_said(
    program: Path, cases: dict[str, Case], served: Fabric, tmp_path: Path
) -> None:
    case = cases["one region"]

    def error(wrong: Case, broker: str = served.frontend, *options: str) -> str:
        done = run(program, wrong, broker, tmp_path, *options)
        assert done.returncode == 1 and not done.stdout
        return done.stderr.removeprefix("error ").splitlines()[0]

    assert error(Case(case.device, {})) == ("INVALID_ARGUMENT: input x FP32[2,8] is missing; give x=FILE with 64 bytes")
    assert "has 4 bytes; give x=FILE with 64" in error(Case(case.device, {"x": np.zeros(1, "f4")}))
    assert error(case, "nonsense").startswith("INVALID_ARGUMENT: cannot connect to 'nonsense'")
    assert error(case, "tcp://127.0.0.1:9", "--timeout", "0.2").startswith("UNAVAILABLE: no broker answered")
    assert error(Case(tmp_path, case.inputs)).startswith(f"FAILED_PRECONDITION: {tmp_path}/manifest.json cannot be")
    assert error(case, served.frontend, "--timeout", "x").startswith("INVALID_ARGUMENT: usage")
    bundle = tmp_path / "device"
    shutil.copytree(case.device, bundle)
    (bundle / "device.so").write_bytes(b"no library")
    assert "device.so is damaged: manifest.json has another checksum" in error(Case(bundle, case.inputs))
    written = (case.device / "manifest.json").read_text()
    (bundle / "manifest.json").write_text(written.replace("0.27", "0.26"))
    assert "was built by TVM 0.26.0.post1, this is TVM 0.27.0" in error(Case(bundle, case.inputs))
    (bundle / "manifest.json").write_text("{}")
    assert error(Case(bundle, case.inputs)).startswith(f"FAILED_PRECONDITION: {bundle}/manifest.json is damaged: ")
    described = json.loads(written)
    region, x = described["offloaded"][0], described["inputs"][0]
    for wrong in (
        {"format_version": 99},
        {"offloaded": [region | {"version": "lab"}]},
        {"inputs": [x | {"shape": [-5, 8]}]},
        {"inputs": [x | {"shape": [2**62, 4]}]},
        {"inputs": [x | {"datatype": "FP99"}]},
    ):
        (bundle / "manifest.json").write_text(json.dumps(described | wrong))
        said = error(Case(bundle, case.inputs))
        assert said.startswith(f"FAILED_PRECONDITION: {bundle}/manifest.json is damaged: "), wrong
    (bundle / "manifest.json").write_text(json.dumps(described | {"cpu": {"architecture": "sparc", "features": []}}))
    assert "device.so was built for sparc, this CPU is " in error(Case(bundle, case.inputs))


@pytest.mark.device
def test_wrong_arguments_are_refused(program: Path, cases: dict[str, Case], served: Fabric, tmp_path: Path) -> None:
    case = cases["one region"]

    def error(*options: str) -> str:
        return run(program, case, served.frontend, tmp_path, *options).stderr

    for timeout in ("nan", "inf", "1e300", "-1"):
        assert error("--timeout", timeout).startswith("error INVALID_ARGUMENT: usage"), timeout
    assert error("--timeout=5").startswith("error INVALID_ARGUMENT: '--timeout=5' is not an option")
    assert error(f"y={tmp_path}") == "error INVALID_ARGUMENT: the model has no input 'y'\n"
    folder = run(program, Case(case.device, {}), served.frontend, tmp_path, f"x={tmp_path}")
    assert "has 0 bytes; give x=FILE with 64" in folder.stderr


@pytest.mark.device
def test_what_the_fabric_says_is_passed_on(program: Path, cases: dict[str, Case], tmp_path: Path) -> None:
    case = cases["one region"]
    other = onnx_models.mlp(tmp_path / "other.onnx")
    compile_model(other, inputs={"x": (3, 8)}, cut=["h2"], until=["h4"], name="mlp", output=tmp_path / "other")
    with running_broker() as fabric:
        done = run(program, case, fabric.frontend, tmp_path)
        assert done.stderr.startswith("error UNAVAILABLE: "), done.stderr
        with running_workers(fabric.backend, "--repository", str(tmp_path / "other/repository")):
            with Client(fabric.frontend) as client:
                eventually(client.models, timeout=60)
            done = run(program, case, fabric.frontend, tmp_path)
            assert done.stderr.startswith("error FAILED_PRECONDITION: "), done.stderr


@pytest.mark.device
def test_a_call_ends_when_the_broker_is_lost(program: Path, cases: dict[str, Case], tmp_path: Path) -> None:
    case = cases["one region"]
    file = tmp_path / "x.input"
    file.write_bytes(case.inputs["x"].tobytes())
    with running_broker() as fabric:
        words = [program, case.device, fabric.frontend, f"x={file}", "--timeout", "60", "--repeat", "10000000"]
        with running_workers(fabric.backend, "--repository", str(case.device.parent / "repository")):
            with Client(fabric.frontend) as client:
                eventually(client.models, timeout=60)
            with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as calls:
                assert calls.stdout is not None and calls.stdout.readline()
                fabric.broker.end(signal.SIGKILL)
                _, said = calls.communicate(timeout=30)
    assert calls.returncode == 1
    assert said.splitlines()[-1] == f"error UNAVAILABLE: the broker at {fabric.frontend} does not answer"


def scripted(
    program: Path, case: Case, folder: Path, replies: Callable[[list[Any], int], list[bytes]]
) -> tuple[Any, Any]:
    """Run the program against a broker that is a plain socket. `replies` gets a request's envelope and how often it
    came, and returns what is sent back. Returns the program as it ended, and the codes of the messages that came."""
    codes: list[int] = []
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket, ThreadPoolExecutor(1) as pool:
        port = socket.bind_to_random_port("tcp://127.0.0.1")
        ended = pool.submit(run, program, case, f"tcp://127.0.0.1:{port}", folder, "--timeout", "2")
        while not ended.done() or socket.poll(0):
            if not socket.poll(50):
                continue
            peer, envelope, *_ = socket.recv_multipart()
            code, session, *fields = msgpack.unpackb(envelope[1:])
            codes.append(code)
            answer = []
            if code == 4:  # none of the requests that are asked for is held here
                answer = [b"\x04" + msgpack.packb([20, session, fields[0], 1 << 28])]
            elif code == 1:
                answer = replies([session, *fields], codes.count(1))
            if answer:
                socket.send_multipart([peer, *answer])
        return ended.result(), codes


@pytest.mark.device
def test_a_request_that_the_broker_does_not_hold_is_sent_again(
    program: Path, cases: dict[str, Case], tmp_path: Path
) -> None:
    def replies(request: list[Any], times: int) -> list[bytes]:
        result = b"\x04" + msgpack.packb([17, *request[:2], 1, 0, 0, 0])
        return [result, *map(bytes, encode_tensors({"h4": np.zeros((2, 8), "f4")}))] if times == 3 else []

    done, codes = scripted(program, cases["one region"], tmp_path, replies)
    assert done.returncode == 0, done.stderr
    assert codes == [4, 1, 4, 1, 4, 1]


@pytest.mark.device
def test_what_a_broker_may_do_wrong_has_a_status(program: Path, cases: dict[str, Case], tmp_path: Path) -> None:
    def error(*frames: bytes) -> str:
        def replies(request: list[Any], times: int) -> list[bytes]:
            result = b"\x04" + msgpack.packb([17, *request[:2], 1, 0, 0, 0])
            return [frame if frame != b"result" else result for frame in frames]

        done, codes = scripted(program, cases["one region"], tmp_path, replies)
        assert done.returncode == 1
        assert codes[-1] == 2 or "DEADLINE" not in done.stderr, "the request is canceled"
        return str(done.stderr)

    wrong = b"".join(map(bytes, encode_tensors({"h4": np.zeros((2, 9), "f4")})))
    assert "error DEADLINE_EXCEEDED: no reply of model 'mlp' within 2.0" in error()
    assert "error FAILED_PRECONDITION: the served version 1 does not reply h4 FP32[2,8]" in error(b"result", wrong)
    assert "error UNAVAILABLE: the peer at tcp" in error(b"\x05")
    endless, negative = b"\xff\xff\xff\xff", b"\0\0\0\x09\x91\x93\xa1x\xa4FP32\x92\xff\xff"
    for envelope in (b"\x04", b"\x04\xc0", b"\x04\x93\x11\xc4\xff", b"result"):
        assert "error INTERNAL: the broker sent" in error(envelope), envelope
    for head in (wrong[:-1], endless, negative):
        assert "error INTERNAL: the broker sent" in error(b"result", head), head


@pytest.mark.arm
def test_it_runs_on_arm(mlp: Path, arm64: Root, tmp_path: Path) -> None:
    """Built for aarch64 with the wheels of a device, against a fabric of this machine."""
    compiler = "aarch64-linux-gnu-g++"
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    site = arm64.folder / "opt" / "site"
    system = ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", f"-DCMAKE_CXX_COMPILER={compiler}"]
    zeromq = next(site.glob("pyzmq.libs/libzmq*"))
    wheels = [f"-DTVM={site / 'tvm'}", f"-DTVM_FFI={site / 'tvm_ffi'}", f"-DZMQ={zeromq}"]
    program = build(tmp_path / "build", *system, *wheels)
    target = {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a72"}
    compiled = compile_model(
        mlp, inputs={"x": (2, 8)}, cut=["h2"], name="mlp", device_target=target, output=tmp_path / "dist"
    )
    case = Case(compiled.device, {"x": onnx_models.random(2, 8, seed=7)})
    emulator = arm64.command([program], cpu="cortex-a72")[:-1]
    with (
        running_broker() as fabric,
        running_workers(fabric.backend, "--repository", str(tmp_path / "dist" / "repository")),
    ):
        with Client(fabric.frontend) as client:
            eventually(client.models, timeout=60)
        done = run(program, case, fabric.frontend, tmp_path, "--timeout", "60", emulator=emulator)
    assert done.returncode == 0, done.stderr
    session = onnxruntime.InferenceSession(mlp, providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(outputs(case, tmp_path)[0], session.run(None, case.inputs)[0], atol=1e-5)
