"""Targets by the names of boards."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import tvm
from tvm.target import codegen

from tests.support.processes import ROOT
from zmq_offload.cli.main import main
from zmq_offload.compile import compile_model
from zmq_offload.compile.boards import BOARDS, NAMES, Board
from zmq_offload.compile.target import cpu_needs, host_target, resolve_target
from zmq_offload.errors import InvalidArgument
from zmq_offload.schedules.machine import machine_of

MACH_O_OF_64_BITS = bytes.fromhex("cffaedfe")
ARM64 = 0x0100000C


@pytest.mark.parametrize("board", BOARDS.values(), ids=lambda board: board.name)
def test_a_board_has_the_features_that_llvm_knows(board: Board) -> None:
    target = resolve_target(board.name)
    known = set(map(str, codegen.llvm_get_cpu_features(target)))
    assert set(board.features) <= known
    if board.triple.startswith("aarch64"):
        assert known & {"fullfp16", "dotprod", "i8mm", "bf16", "sve"} == set(board.features) - {"neon"}
        assert (machine_of(target).lanes, machine_of(target).registers) == (4, 32)
    assert machine_of(target).threads == (board.cores or 4)


def test_vectors_and_products_follow_the_features() -> None:
    machines = {name: machine_of(resolve_target(name)) for name in BOARDS}
    assert [machines[f"x86-64-v{level}"].lanes for level in (2, 3, 4)] == [4, 8, 16]
    products = [machines[name].integers for name in ("raspberry-pi-4", "raspberry-pi-5", "apple-m", "graviton3")]
    assert products == ["smull", "sdot", "sdot", "usdot"]


def test_the_small_cores_of_a_board_run_the_code_of_its_large_ones() -> None:
    small = tvm.target.Target({"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a55"})
    assert set(cpu_needs(resolve_target("rk3588")).features) <= set(cpu_needs(small).features)


def test_host_is_the_default() -> None:
    assert str(resolve_target("host")) == str(resolve_target(None)) == str(host_target())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("rasberry-pi-4", "target 'rasberry-pi-4' is not known; did you mean 'raspberry-pi-4' or 'raspberry-pi-5'?"),
        ("RaspberryPi 5", "did you mean 'raspberry-pi-5' or 'raspberry-pi-4'?"),
        ("graviton", "did you mean 'graviton3'?"),
        ("pentium", "is not known; `zmq-offload compile --list-targets` lists the names, and TVM's JSON is taken"),
        ('{"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a720x"}', "did you mean 'cortex-a720'?"),
        (
            "llvm -mtriple=aarch64-linux-gnu -mcpu=cortex-a72 -mattr=+neon,+crc -num-cores=4 -device=arm_cpu",
            'has options, which TVM takes as JSON only; write {"kind": "llvm", "mtriple": "aarch64-linux-gnu", '
            '"mcpu": "cortex-a72", "mattr": ["+neon", "+crc"], "num-cores": 4}',
        ),
        (
            '{"kind": "llvm", "mtriple": "armv7l-linux-gnueabihf", "mcpu": "cortex-a7"}',
            "is of 32 bits (armv7l-linux-gnue",
        ),
        (
            '{"kind": "llvm", "mtriple": "nonsense"}',
            "does not know the architecture 'nonsense' of the triple 'nonsense'",
        ),
        ('{"kind": "llvm", "num-cores": 0}', "num-cores is 0; expected 1 or more"),
        (
            '{"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mattr": ["+dotprod", "-crc", "+asimd"]}',
            "LLVM does not know the feature '+asimd' for aarch64-linux-gnu; write +NAME",
        ),
        ("llvm -mcpu cortex-a72", 'JSON only; write {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu"'),
    ],
)
def test_a_wrong_target_is_answered_with_the_right_one(given: str, message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        resolve_target(given)
    assert message in str(caught.value)
    if (start := str(caught.value).find("write {")) >= 0:
        assert resolve_target(json.loads(str(caught.value)[start + len("write ") :])).attrs["mcpu"] == "cortex-a72"


@pytest.mark.skipif(importlib.util.find_spec("ziglang") is None, reason="ziglang is not installed")
def test_a_mac_gets_a_library_in_its_own_format(mlp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("CC", raising=False)
    compiled = compile_model(mlp, inputs={"x": (2, 8)}, cut="h2", name="mlp", output=tmp_path, device_target="apple-m")
    head = (compiled.device / "device.so").read_bytes()[:8]
    assert head[:4] == MACH_O_OF_64_BITS and int.from_bytes(head[4:], "little") == ARM64
    assert compiled.manifest.cpu.architecture == "aarch64"


def test_targets_are_listed_without_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["compile", "--list-targets"])
    assert ended.value.code == 0
    rows = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert rows == ["TARGET", *NAMES]


def test_the_documentation_has_the_table() -> None:
    page = (ROOT / "docs" / "targets.md").read_text()
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    assert list(rows) == list(NAMES)
    for board in BOARDS.values():
        cores = "" if board.cores is None else str(board.cores)
        cells = (f"`{board.name}`", board.title, board.cpu, " ".join(board.features), cores)
        assert [cell.strip() for cell in rows[board.name].split("|")[1:-1]] == list(cells)
