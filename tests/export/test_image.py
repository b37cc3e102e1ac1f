"""What `zmq-offload image` writes, and that a device runs with it alone."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.arm.root import Root
from tests.support import onnx_models
from tests.support.processes import eventually, running_broker, running_workers
from tests.support.wheels import installed_wheels, stand_ins
from zmq_offload import Client
from zmq_offload.cli.main import main
from zmq_offload.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from zmq_offload.export import write_image
from zmq_offload.export.kept import download, place_of, requirements

if TYPE_CHECKING:
    from zmq_offload.compile import Compiled

PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
DEVICE = {"apache-tvm", "apache-tvm-ffi", "pyzmq", "numpy", "msgpack", "msgspec", "typing-extensions", "ml-dtypes"}
if PYTHON == "3.10":
    DEVICE.add("tomli")
OTHER = "3.14"  # its bytecode is not made here, which takes seconds
TVM = importlib.metadata.version("apache-tvm")


def test_a_device_installs_what_is_of_no_extra_and_of_its_own() -> None:
    declared = ["a>=1", 'b; python_version < "3.11"', "c<2; extra == 'tvm'", 'd; extra == "tvm-more"', "e; x"]
    assert requirements(declared, "tvm", "3.11") == ["a>=1", "c<2", "e"]
    assert requirements(declared, "tvm", "3.10") == ["a>=1", "b", "c<2", "e"]


@pytest.mark.parametrize(
    ("member", "place"),
    [
        ("tvm/lib/libtvm_runtime.so", "tvm/lib/libtvm_runtime.so"),
        ("tvm/lib/libtvm_compiler.so", None),
        ("tvm/relax/op.py", None),
        ("tvm/licenses/LICENSE.x.txt", "tvm/licenses/LICENSE.x.txt"),
        ("tvm_ffi/dataclasses/enum.py", "tvm_ffi/dataclasses/enum.py"),
        ("tvm_ffi/include/tvm/ffi/any.h", None),
        ("numpy/_core/_multiarray_umath.so", "numpy/_core/_multiarray_umath.so"),
        ("numpy/_core/tests/test_ufunc.py", None),
        ("numpy/_core/lib/libnpymath.a", None),
        ("numpy.libs/libopenblas.so", "numpy.libs/libopenblas.so"),
        ("tests/test_of_a_package.py", None),
        ("numpy-2.0.dist-info/LICENSE", "numpy-2.0.dist-info/LICENSE"),
        ("numpy-2.0.dist-info/RECORD", None),
        ("cv2-1.data/purelib/cv2.py", "cv2.py"),
        ("cv2-1.data/scripts/cv2", None),
        ("cv2/", None),
        ("cv2/../../escaped", None),
        ("/etc/escaped", None),
        ("cv2-1.data/purelib//etc/escaped", None),
    ],
)
def test_what_is_kept_of_a_wheel(member: str, place: str | None) -> None:
    assert place_of(member) == place


def test_wheels_come_from_pypi_or_a_folder() -> None:
    from_pypi = download(["a"], Path("w"), "aarch64", "3.11", None)
    assert "--no-index" not in from_pypi and from_pypi[-1] == "a"
    assert {"manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64", "any"} <= set(from_pypi)
    assert "--no-index --find-links mine" in " ".join(download(["a"], Path("w"), "aarch64", "3.11", Path("mine")))


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stand_ins(tmp_path_factory.mktemp("wheels"))


def test_an_image_has_packages_and_bundle(
    wheels: Path, arm_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "image"
    options = [
        "--wheels",
        str(wheels),
        "--bundle",
        str(arm_bundle),
        "--with",
        "opencv-python-headless",
        "--without",
        "MsgPack",
    ]
    assert main(["image", str(out), *options]) == 0
    site = out / "site"
    packages = {path.name for path in site.iterdir() if not path.name.endswith((".dist-info", "__pycache__"))}
    assert packages == {"pyzmq", "numpy", "msgspec", "tvm", "tvm_ffi", "cv2.py", "zmq_offload"}
    assert [file.name for file in (site / "tvm").rglob("*") if file.is_file()] == ["libtvm_runtime.so"]
    assert not (site / "numpy" / "tests").exists() and not (site / "zmq_offload" / "compile" / "api.py").exists()
    assert not list((site / "zmq_offload").rglob("*.so")), "compiled code is for this machine"
    assert (out / "device" / "device.so").read_bytes() == (arm_bundle / "device.so").read_bytes()
    assert os.access(out / "run", os.X_OK) and "exec python3.11 " in (out / "run").read_text()
    said = capsys.readouterr().out
    assert said.startswith(f"{out}  (") and "MB  zmq_offload" in said
    with pytest.raises(AlreadyExists, match="--force"):
        write_image(out, wheels=wheels)
    assert not [path for path in out.parent.iterdir() if path != out]


@pytest.fixture(scope="module")
def arm_bundle(compiled_mlp: Compiled, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose manifest says that it is for ARM."""
    folder = tmp_path_factory.mktemp("arm") / "device"
    folder.mkdir()
    (folder / "device.so").write_bytes((compiled_mlp.device / "device.so").read_bytes())
    described = (compiled_mlp.device / "manifest.json").read_text()
    (folder / "manifest.json").write_text(described.replace('"architecture": "x86_64"', '"architecture": "aarch64"'))
    return folder


def test_what_cannot_be_written_is_refused(
    compiled_mlp: Compiled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "image"
    with pytest.raises(InvalidArgument, match="machine 'armv7l' is not one of aarch64, x86_64"):
        write_image(out, machine="armv7l")
    with pytest.raises(InvalidArgument, match=r"Python '3' is not a version such as 3\.11"):
        write_image(out, python="3")
    other = "x86_64" if platform.machine() == "aarch64" else "aarch64"
    with pytest.raises(InvalidArgument, match=f"was built for {platform.machine()}, the image is for {other}"):
        write_image(out, machine=other, bundle=compiled_mlp.device)
    with pytest.raises(FailedPrecondition, match="a device bundle"):
        write_image(out, bundle=tmp_path)
    with pytest.raises(InvalidArgument, match=r"Python '3\.05' is not a version such as 3\.11"):
        write_image(out, python="3.05")
    (tmp_path / "file").write_text("")
    with pytest.raises(FailedPrecondition, match="cannot be written"):
        write_image(tmp_path / "file" / "image")

    def unknown(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", unknown)
    with pytest.raises(FailedPrecondition, match="it is not installed; use pip install"):
        write_image(out)


def test_an_image_takes_and_replaces_only_its_own(wheels: Path, arm_bundle: Path, tmp_path: Path) -> None:
    """Beside a bundle, a model repository may have the part that a device must not have."""
    mine, hidden, bundle = tmp_path / "mine", tmp_path / ".mine-of-last-year", tmp_path / "bundle"
    for folder in (mine, hidden):
        folder.mkdir()
        (folder / "thesis.txt").write_text("mine")
    for place in (mine, mine / "thesis.txt"):
        with pytest.raises(AlreadyExists, match=r"is not only an image, because of thesis\.txt"):
            write_image(place, python=OTHER, wheels=wheels, force=True)
    shutil.copytree(arm_bundle, bundle)
    (bundle / "repository").mkdir()
    (bundle / "repository" / "subgraph.so").write_bytes(b"the offloaded part")
    image = tmp_path / "mine" / "image"
    for given in (None, bundle):
        write_image(image, python=OTHER, wheels=wheels, bundle=given, force=True)
    assert {path.name for path in (image / "device").iterdir()} == {"device.so", "manifest.json"}
    (mine / "thesis.txt").rename(tmp_path / "thesis.txt")
    mine.rename(tmp_path / "other")
    write_image(mine, python=OTHER, wheels=wheels)
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "other", "bundle", "thesis.txt", hidden.name}
    assert (hidden / "thesis.txt").read_text() == "mine"


def test_packages_that_do_not_fit_are_refused(wheels: Path, arm_bundle: Path, tmp_path: Path) -> None:
    out, bundle = tmp_path / "image", tmp_path / "bundle"
    with pytest.raises(InvalidArgument, match="the package 'nunpy' is not one of apache_tvm, apache_tvm_ffi, "):
        write_image(out, python=OTHER, wheels=wheels, without=["nunpy"])
    shutil.copytree(arm_bundle, bundle)
    manifest = bundle / "manifest.json"
    manifest.write_text(manifest.read_text().replace(f'"{TVM}"', '"0.27.0"'))
    with pytest.raises(
        FailedPrecondition, match=rf"was built by TVM 0\.27\.0, the image has TVM {TVM}; compile it again"
    ):
        write_image(out, python=OTHER, wheels=wheels, bundle=bundle)
    broken = tmp_path / "broken"
    shutil.copytree(wheels, broken)
    wheel = next(broken.glob("numpy-*.whl"))
    wheel.write_bytes(wheel.read_bytes().replace(b"1", b"3", 1))
    with pytest.raises(FailedPrecondition, match=r"a wheel is damaged: Bad CRC-32 for file 'numpy/__init__\.py'"):
        write_image(out, python=OTHER, wheels=broken)
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", "broken"}


def test_an_index_that_does_not_answer_is_not_a_missing_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(FailedPrecondition, match="the package index does not answer; check the network"):
        write_image(tmp_path / "image")
    assert not list(tmp_path.iterdir())


@pytest.mark.device
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    """The index takes pip's connection and says nothing."""
    out, temporary = tmp_path / "out", tmp_path / "temporary"
    out.mkdir()
    temporary.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as index:
        index.settimeout(60)
        address = f"http://127.0.0.1:{index.getsockname()[1]}/simple"
        environment = {**os.environ, "PIP_INDEX_URL": address, "NO_PROXY": "127.0.0.1", "TMPDIR": str(temporary)}
        words = [sys.executable, "-m", "zmq_offload", "image", str(out / "image")]
        with subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True) as process:
            connection, _ = index.accept()
            with connection:
                process.send_signal(number)
                _, said = process.communicate(timeout=60)
                connection.settimeout(60)
                while connection.recv(4096):  # until pip has ended, too
                    pass
    assert (process.returncode, said) == (128 + number, "zmq-offload: interrupted\n")
    assert not [*out.iterdir(), *temporary.iterdir()]


SCRIPT = """
import sys, sysconfig, zmq_offload, numpy
with zmq_offload.load(sys.argv[1], sys.argv[2], timeout=60) as model:
    numpy.save(sys.argv[3], model(numpy.load(sys.argv[4])))
standard = sysconfig.get_path("stdlib")
files = {getattr(module, "__file__", None) or "" for module in list(sys.modules.values())}
print(sorted(file for file in files if file and not file.startswith(standard) and file != __file__))
"""


def check_device(image: Path, command: list[str], environment: Mapping[str, str], dist: Path, folder: Path) -> None:
    """Run the image's bundle against a fabric of this machine, and compare it with the uncut model."""
    import onnxruntime

    x = onnx_models.random(2, 8, seed=7)
    np.save(folder / "x.npy", x)
    (folder / "app.py").write_text(SCRIPT)
    with running_broker() as fabric, running_workers(fabric.backend, "--repository", str(dist / "repository")):
        with Client(fabric.frontend) as client:
            eventually(client.models, timeout=60)
        words = [*command, folder / "app.py", image / "device", fabric.frontend, folder / "y.npy", folder / "x.npy"]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    outside = [file for file in eval(done.stdout) if not file.startswith(str(image / "site"))]
    assert not outside, "all packages are the image's"
    expected = onnxruntime.InferenceSession(dist / "m.onnx", providers=["CPUExecutionProvider"]).run(None, {"x": x})
    np.testing.assert_allclose(np.load(folder / "y.npy"), expected[0], atol=1e-5)


def compiled(folder: Path, device_target: dict[str, str] | None = None) -> Path:
    from zmq_offload.compile import compile_model

    dist = folder / "dist"
    dist.mkdir()
    path = onnx_models.mlp(dist / "m.onnx")
    compile_model(path, inputs={"x": (2, 8)}, cut=["h2"], name="mlp", output=dist, device_target=device_target)
    return dist


@pytest.mark.device
@pytest.mark.skipif(platform.machine() != "x86_64", reason="its wheels are for x86-64")
def test_a_device_runs_with_an_image_alone(tmp_path: Path) -> None:
    """Its Python is the one that this environment was made of, without packages of its own that would be used."""
    dist, image = compiled(tmp_path), tmp_path / "image"
    wheels = installed_wheels(tmp_path / "wheels", DEVICE, Path(sysconfig.get_path("platlib")))
    written = write_image(image, machine="x86_64", python=PYTHON, wheels=wheels, bundle=dist / "device")
    assert written.compiled and sum(written.sizes.values()) < 100e6
    with pytest.raises(FailedPrecondition, match="wheels for the device cannot be had: No matching distribution"):
        write_image(image, machine="aarch64", python=PYTHON, wheels=wheels, force=True)
    assert (image / "run").exists(), "what was there stays"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / f"python{PYTHON}").symlink_to(Path(sys.executable).resolve())
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment = kept | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    check_device(image, [str(image / "run"), "-s"], environment, dist, tmp_path)
    assert main(["profile", str(dist / "m.onnx"), "--input", "x=2,8", "--parts", str(tmp_path / "parts")]) == 0

    def commanded(*words: object) -> str:
        line = [image / "run", "-s", "-m", "zmq_offload", *words]
        done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert "Traceback" not in done.stderr, done.stderr
        return done.stdout + done.stderr

    commanded("profile", tmp_path / "parts", "--save", tmp_path / "p.json")
    assert (tmp_path / "p.json").exists()
    with running_broker() as fabric:
        assert "workers" in commanded("status", "--broker", fabric.frontend)
    for name in ("compile", "doctor", "demo", "load", "gateway", "broker", "worker", "image"):
        assert f"the command '{name}' is not in a device image" in commanded(name, "x")


@pytest.mark.arm
def test_a_device_with_arm_runs_with_an_image_alone(arm64: Root, tmp_path: Path) -> None:
    """The packages are those of the arm64 root, which is used without them."""
    dist = compiled(tmp_path, {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a72"})
    image = tmp_path / "image"
    wheels = installed_wheels(tmp_path / "wheels", DEVICE, arm64.folder / "opt" / "site")
    write_image(image, wheels=wheels, bundle=dist / "device")
    environment = arm64.environment({"PYTHONPATH": str(image / "site")})
    check_device(image, arm64.command(["python3", "-S"], cpu="cortex-a72"), environment, dist, tmp_path)
