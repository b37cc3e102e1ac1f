"""`zmq-offload profile`: its counts and its output. No speed is asserted."""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace
from PIL import Image

from tests.support.local_client import LocalClient
from tests.support.split_bundles import SplitNet, write_bundle, write_models
from zmq_offload.artifacts.manifest import Manifest
from zmq_offload.artifacts.repository import Repository
from zmq_offload.cli.main import main
from zmq_offload.compile import Compiled, compile_model
from zmq_offload.compile.flops import counting
from zmq_offload.console.tables import text
from zmq_offload.errors import NotFound
from zmq_offload.profile.measure import measure
from zmq_offload.profile.profiling import check_served
from zmq_offload.profile.report import describe, name_of
from zmq_offload.profile.result import VM, Function, Measured, Profile, flops_of
from zmq_offload.profile.subject import open_subject
from zmq_offload.protocol.tensors import TensorSpec

FAST = ["--repeat", "4", "--quiet"]


def test_an_onnx_file_is_compiled_and_shown_as_table_picture_csv_and_json(
    convnet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture, table, data = (tmp_path / name for name in ("p.png", "p.csv", "p.json"))
    files = ["-o", str(picture), "--csv", str(table), "--json", str(data)]
    assert main(["profile", str(convnet), "--input", "x=1,3,16,16", *FAST, *files]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^model    convnet\.onnx \(ONNX file, compiled here\), x 1x3x16x16$", said, re.M)
    assert re.search(r"^peak     \d+ GFLOP/s, measured", said, re.M)
    assert re.search(r"^compared +ONNX Runtime takes .*, TVM [0-9.]+ times as long$", said, re.M)
    found = json.loads(data.read_text())
    functions = found["functions"]
    assert sum(f["share"] for f in functions) == pytest.approx(1)
    assert all(f["seconds"] >= 0 and f["calls"] >= 1 for f in functions)
    assert VM in [f["function"] for f in functions]
    # Each 3x3 convolution at 16 x 16, 8 channels out, from 3 and from 8; a multiply-add is two.
    products = 2 * 9 * 256 * 8 * (3 + 8)
    assert products <= sum(f["flops"] or 0 for f in functions) < 1.5 * products
    with table.open(newline="") as file:
        assert [row["function"] for row in csv.DictReader(file)] == [f["function"] for f in functions]
    with Image.open(picture) as image:
        assert image.width == 1400
        assert len(image.getcolors(1 << 20) or ()) > 20


def test_flops_of_a_symbolic_batch_grow_with_its_rows(mlp: Path, tmp_path: Path) -> None:
    fixed = compile_model(mlp, inputs={"x": (5, 8)}, cut=["h2"], name="mlp", output=tmp_path / "fixed")
    symbolic = compile_model(mlp, inputs={"x": ("N", 8)}, cut=["h2"], name="mlp", output=tmp_path / "symbolic")

    def total(compiled: Compiled, rows: int | None) -> int:
        counts = compiled.models[0].extra["flops"]
        return sum(flops_of(counts, name, rows) or 0 for name in counts)

    assert total(fixed, None) == total(symbolic, 5) == 2 * 5 * 16 * 8
    assert total(symbolic, None) == 0


def test_counts_in_a_file_may_be_anything() -> None:
    for counts in ({}, {"f": 3}, {"f": [1]}, {"f": ["1", 2]}, {"f": None}):
        assert flops_of(counts, "f", 2) is None
    assert flops_of({"f": [1, 2]}, "f", 3) == 7


def test_counting_leaves_compiling_as_it_is() -> None:
    with counting() as counts:
        pass
    assert counts == {}


def test_a_version_of_the_repository_is_profiled(
    compiled_mlp: Compiled, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", str(compiled_mlp.subgraphs[0]), *FAST, "-o", str(tmp_path / "p.png")]) == 0
    said = capsys.readouterr().out
    assert "model    mlp version 1 (subgraph), h2 2x16" in said
    assert "ONNX Runtime" not in said


def test_a_device_bundle_calls_its_workers_and_shows_each_call(compiled_mlp: Compiled) -> None:
    client = LocalClient(compiled_mlp.subgraphs[0].parent.parent)
    subject = open_subject(compiled_mlp.device, {}, None, client)
    measured = measure(subject, subject.arrays({}), 2)
    assert len(client.calls) == 4 + 2 * 2, "two VMs, two runs each to warm up"
    assert [f.calls for f in measured.functions if f.model == "mlp"] == [1]
    client.error = TimeoutError("no answer")
    with pytest.raises(TimeoutError, match="no answer"):
        measure(subject, subject.arrays({}), 2)


def test_an_adaptive_bundle_is_profiled_by_one_of_its_splits(
    tmp_path: Path, compiled_mlp: Compiled, capsys: pytest.CaptureFixture[str]
) -> None:
    net = SplitNet()
    bundle = write_bundle(tmp_path / "device", net)
    write_models(Repository(tmp_path / "repository"), net, cuts=["wide"])
    assert open_subject(bundle, {}, None, None, "narrow").entry == "to_narrow"
    assert open_subject(tmp_path / "repository" / net.model("wide") / "1", {}, None, None).entry == "from_wide"
    output = [*FAST, "-o", str(tmp_path / "p.png")]
    assert main(["profile", str(bundle), "--split", "wide", *output]) == 0
    assert net.model("wide") in capsys.readouterr().out
    for folder, split, error in (
        (bundle, [], "has the splits 'x', 'wide', 'narrow'; name one with --split"),
        (bundle, ["--split", "wid"], "split 'wid' is not in the bundle"),
        (compiled_mlp.device, ["--split", "wide"], "split 'wide' is not in the bundle; it has one cut only"),
        (compiled_mlp.subgraphs[0], ["--split", "wide"], "--split is for device bundles"),
    ):
        assert main(["profile", str(folder), *split, *output]) != 0
        assert error in capsys.readouterr().err


def test_a_device_bundle_without_a_broker_says_that_it_took_zeros(
    compiled_mlp: Compiled, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", str(compiled_mlp.device), *FAST, "-o", str(tmp_path / "p.png")]) == 0
    said = capsys.readouterr().out
    assert "note     no --broker: mlp did not run; their outputs are zeros" in said
    assert "mlp (offloaded)" in said


def test_a_device_bundle_is_profiled_without_the_compiler(
    compiled_mlp: Compiled, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("onnx", "matplotlib"):
        monkeypatch.setitem(sys.modules, package, None)
    picture = tmp_path / "p.png"
    assert main(["profile", str(compiled_mlp.device), *FAST, "-o", str(picture)]) == 0
    said = capsys.readouterr().out
    assert "note     the peak is not measured, since that needs the extra compile" in said
    assert said.endswith("not drawn, since that needs the extra compile\n") and not picture.exists()
    assert "mlp (offloaded)" in said
    assert main(["profile", "model.onnx", *FAST, "-o", str(picture)]) == 1


def test_a_device_bundle_counts_the_work_of_the_device_only(compiled_mlp: Compiled) -> None:
    device, subgraph = compiled_mlp.manifest.flops, compiled_mlp.models[0].extra["flops"]
    assert device
    assert subgraph
    library = (compiled_mlp.device / "device.so").read_bytes()
    assert all(name.encode() in library for name in device)
    assert sum(fixed for fixed, _ in device.values()) == 2 * (2 * 8 * 16) + 2 * 16, "x * w1, and its Relu"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nothing"], "nothing does not exist; name a model file"),
        (["."], "is neither a model file nor a folder with model.json"),
        (["{mlp}"], "--input is missing for 'x'"),
        (["{mlp}", "--input", "x=N,8"], "x has a symbolic dimension; give numbers"),
        (["{mlp}", "--input", "x=2,8", "--broker", "tcp://127.0.0.1:1"], "--broker is for device bundles"),
        (["{mlp}", "--input", "x=2,8", "--input", "x=2,8"], "the shape of 'x' is given twice"),
        (["{mlp}", "--input", "x=2,8", "--csv", "p.txt", "--json", "p.txt"], "p.txt is given for two outputs"),
        (["{mlp}", "--input", "x=2,8", "--target", "?"], "target '?'"),
        (["{mlp}", "--input", "x=2,8", "--target", '{{"kind": "llvm", "mtriple": "riscv64-linux-gnu"}}'], "riscv64"),
        (["{mlp}", "--input", "x=2,8", "-o", "none/p.png"], "none/p.png cannot be written"),
        (["{subgraph}", "--target", "llvm"], "--target is for model files"),
        (["{subgraph}", "--input", "h2=3,16"], "--input h2=3,16 does not fit h2 FP32[2,16]"),
        (["{subgraph}", "--input", "x=3,16"], "the model has no input 'x'; it has h2 FP32[2,16]"),
    ],
)
def test_failures_are_one_line(
    arguments: list[str],
    says: str,
    mlp: Path,
    compiled_mlp: Compiled,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    filled = [a.format(mlp=mlp, subgraph=compiled_mlp.subgraphs[0]) for a in arguments]
    assert main(["profile", *filled, *FAST]) == 1
    said = capsys.readouterr().err
    assert re.fullmatch(r"zmq-offload: error: [^\n]+\n", said)
    assert says in said
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_symbolic_dimensions_need_numbers(mlp: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compiled = compile_model(mlp, inputs={"x": ("N", 8)}, cut=["h2"], name="mlp", output=tmp_path)
    folder = str(compiled.subgraphs[0])
    assert main(["profile", folder, *FAST, "-o", str(tmp_path / "p.png")]) == 1
    assert "input h2 FP32[?,16] has symbolic dimensions; give numbers" in capsys.readouterr().err
    assert main(["profile", folder, "--input", "h2=7,16", *FAST, "-o", str(tmp_path / "p.png")]) == 0
    said = capsys.readouterr().out
    assert "7x8" in said
    assert "GFLOP a run" in said


def profile(*functions: Function) -> Profile:
    return Profile("m", "k", "x 1", {"kind": "llvm"}, 2, 3, Measured(functions, 0.01, 0.011, 0.005), 1e9)


def test_the_table_shows_the_slowest_and_sums_up_the_others() -> None:
    many = [Function(f"f{at}", 1, (9 - at) * 1e-3, 1_000_000) for at in range(6)]
    lines = text(describe(profile(*many), 3)).splitlines()[-5:]
    assert lines[0].split() == ["FUNCTION", "OUTPUT", "CALLS", "TIME", "ms", "SHARE", "GFLOP/S", "OF", "PEAK"]
    assert lines[1].split() == ["f0", "1", "9.000", "23.1%", "0.1", "11.1%"]
    assert lines[4].split() == ["(3", "others)", "3", "15.000", "38.5%", "0.2", "20.0%"]
    assert "TVM 2.00 times as long" in text(describe(profile(*many), 3))


def test_long_names_are_shortened_in_the_middle() -> None:
    assert name_of(Function("a" * 30 + "b" * 30, 1, 1.0), 20) == "a" * 13 + "…" + "b" * 6


def test_inputs_are_the_same_in_every_run_and_integers_are_zeros(compiled_mlp: Compiled) -> None:
    subject = open_subject(compiled_mlp.subgraphs[0], {}, None, None)
    np.testing.assert_array_equal(subject.arrays({})[0], subject.arrays({})[0])
    subject.inputs = (TensorSpec("i", "INT64", (-1, 2)),)
    np.testing.assert_array_equal(subject.arrays({"i": (3, 2)})[0], np.zeros((3, 2), "i8"))


def test_a_broker_that_is_not_there_is_found_out_within_the_timeout(
    compiled_mlp: Compiled, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zmq_offload.profile.peak.measured_peak", None)  # nothing slow starts
    arguments = ["profile", str(compiled_mlp.device), "--broker", "tcp://127.0.0.1:1", "--timeout", "0.2", *FAST]
    assert main([*arguments, "-o", str(tmp_path / "p.png")]) == 1
    said = capsys.readouterr().err
    assert re.fullmatch(r"zmq-offload[^\n]*: no broker answered at tcp://127\.0\.0\.1:1 within 0\.200 s\n", said)
    assert not (tmp_path / "p.png").exists()


def test_a_model_that_nobody_serves_is_found_out_before_anything_slow(compiled_mlp: Compiled) -> None:
    class Serving:
        def __init__(self, *served: tuple[str, int]) -> None:
            self._served = served

        def models(self) -> list[dict[str, object]]:
            return [{"name": name, "version": version} for name, version in self._served]

    def check(manifest: Manifest, *served: tuple[str, int]) -> None:
        check_served(Serving(*served), manifest, "tcp://b:5555")  # type: ignore[arg-type]

    latest = compiled_mlp.manifest
    check(latest, ("mlp", 3))
    with pytest.raises(NotFound, match=r"'mlp', which the bundle calls; served are mpl; did you mean 'mpl'\?"):
        check(latest, ("mpl", 3))
    pinned = replace(latest, offloaded=tuple(replace(region, version=2) for region in latest.offloaded))
    check(pinned, ("mlp", 2), ("mlp", 3))
    with pytest.raises(NotFound, match="version 2 of 'mlp'"):
        check(pinned, ("mlp", 3))
