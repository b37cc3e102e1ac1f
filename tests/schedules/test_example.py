"""The example of docs/schedules.md: the numbers in its text and drawing are those of the generated loops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tvm
from tvm import tirx
from tvm.relax.frontend.onnx import from_onnx

from tests.schedules.schedule_harness import Net
from zmq_offload.compile.pipeline import fusing
from zmq_offload.schedules import Machine, machine_of
from zmq_offload.schedules.machine import CACHE_BYTES
from zmq_offload.schedules.rewrite import Rewriter
from zmq_offload.schedules.schedule import schedule_pass
from zmq_offload.schedules.tiles import Tile, choose_tile

AVX2 = tvm.target.Target({"kind": "llvm", "mcpu": "haswell", "num-cores": 2})
DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def conv2d() -> tirx.PrimFunc:
    net = Net()
    y = net.op("Conv", net.input(1, 64, 56, 56), net.weight(64, 64, 3, 3), net.weight(64), pads=[1] * 4)
    mod = from_onnx(net.model(net.op("Relu", y)), keep_params_in_input=False)
    with AVX2:
        mod = tvm.transform.Sequential([*fusing(AVX2), schedule_pass(machine_of(AVX2))])(mod)
    (found,) = (f for gv, f in mod.functions.items() if gv.name_hint == "fused_conv2d_add_relu")
    return found


def inside(statement: tirx.Stmt, kind: type) -> list[Any]:
    if isinstance(statement, tirx.SeqStmt):
        children = list(statement.seq)
    else:
        children = [
            s for name in ("body", "then_case", "else_case") if (s := getattr(statement, name, None)) is not None
        ]
    own = [statement] if isinstance(statement, kind) else []
    return own + [found for child in children for found in inside(child, kind)]


def test_the_loops_have_the_extents_of_the_drawing(conv2d: tirx.PrimFunc) -> None:
    loops = {str(f.loop_var.name): f for f in inside(conv2d.body, tirx.For)}
    assert (loops["p"].kind, int(loops["p"].extent)) == (tirx.ForKind.PARALLEL, 4)
    assert [int(loops[name].extent) for name in ("chunk", "row", "tile")] == [4, 14, 14]
    (depth,) = (f for f in inside(loops["tile"].body, tirx.For) if isinstance(f.body, tirx.For))
    # Three rows of taps; two at the upper and the lower edge, where the others read padding.
    for band, row, taps in ((0, 0, 2), (0, 1, 3), (3, 13, 2)):
        place = {loops["p"].loop_var: tirx.IntImm("int64", band), loops["row"].loop_var: tirx.IntImm("int64", row)}
        assert int(tvm.sym.Analyzer().simplify(Rewriter(place).visit(depth.extent))) == taps
    assert int(depth.body.extent) == 3 * 64
    updates = [s for s in inside(depth.body, tirx.BufferStore) if str(s.buffer.name).startswith("total")]
    assert len(updates) == 4 * 2
    weights = conv2d.params[1]
    assert [int(s) for s in weights.shape] == [4, 3, 3, 64, 16]


def test_the_window_has_the_size_of_the_drawing_and_twice_the_rows_would_not_fit(conv2d: tirx.PrimFunc) -> None:
    (window,) = (a.buffer for a in inside(conv2d.body, tirx.AllocBuffer) if str(a.buffer.name).startswith("window"))
    assert int(window.shape[0]) == 16 * 58 * 64
    assert 16 * 58 * 64 * 4 == 232 * 1024 < CACHE_BYTES < 30 * 58 * 64 * 4


@pytest.mark.parametrize(
    ("machine", "many", "symbolic"),
    [
        (Machine(16, 32, 2), Tile(12, 32), Tile(6, 64)),
        (Machine(8, 16, 2), Tile(6, 16), Tile(6, 16)),
        (Machine(4, 32, 2, lane_factors=True), Tile(6, 16), Tile(6, 16)),
    ],
)
def test_tiles_for_many_rows_and_64_columns(machine: Machine, many: Tile, symbolic: Tile) -> None:
    assert choose_tile(machine, 4800, 64) == many
    assert choose_tile(machine, None, 64) == symbolic
    assert f"{many.rows} x {many.columns} with" in (DOCS / "schedules.md").read_text()
