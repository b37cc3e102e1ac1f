"""Where the time of a compiled model goes: per fused function, against the machine's peak and ONNX Runtime."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import relax, tirx
from tvm.ir import IRModule
from tvm.ir.transform import Sequential
from tvm.target import Target

from zmq_offload.compile.schedules.machine import machine_of
from zmq_offload.compile.schedules.measure import operations, peak_gflops
from zmq_offload.compile.schedules.pipeline import fusing, lowering
from zmq_offload.compile.schedules.rewrite import Unsupported

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class FunctionTime:
    """One fused function in one run of the model."""

    name: str
    calls: int
    milliseconds: float  # of all its calls
    share: float  # of the time of all functions
    operations: int | None  # floating-point operations of all its calls; None where they cannot be counted

    @property
    def gflops(self) -> float | None:
        """Billions of operations per second."""
        return None if self.operations is None or not self.milliseconds else self.operations / self.milliseconds / 1e6


@dataclass(frozen=True)
class Profile:
    """A model's run: its functions, longest first, and what to compare them with."""

    functions: tuple[FunctionTime, ...]
    milliseconds: float  # the whole call, without instrumentation
    peak_gflops: float
    onnxruntime_ms: float | None = None


def profile(
    mod: IRModule,
    target: Target,
    inputs: Sequence[Array],
    *,
    entry: str = "main",
    repeat: int = 20,
    onnx_model: bytes | None = None,
    tuning: Path | None = None,
) -> Profile:
    """Compile `mod` for `target`, run `entry` on `inputs` and time each function in place, by medians of `repeat` runs."""
    with target:
        fused = Sequential(fusing(target))(mod)
    counts = {str(n.name_hint): _operations(f) for n, f in fused.functions.items() if isinstance(f, tirx.PrimFunc)}
    executable = tvm.compile(fused, target, relax_pipeline=lowering(target, tuning))
    vm = relax.VirtualMachine(executable, tvm.cpu())
    tensors = [tvm.runtime.tensor(np.ascontiguousarray(i)) for i in inputs]
    whole = _median(lambda: vm[entry](*tensors), repeat)
    times = _instrumented(vm, entry, tensors, repeat)
    total = sum(ms for _, ms in times.values()) or 1.0
    functions = [
        FunctionTime(name, calls, ms, ms / total, None if (n := counts.get(name)) is None else n * calls)
        for name, (calls, ms) in times.items()
        if name in counts
    ]
    functions.sort(key=lambda f: -f.milliseconds)
    threads = machine_of(target).threads
    other = None if onnx_model is None else onnxruntime_ms(onnx_model, inputs, threads, repeat)
    return Profile(tuple(functions), whole, peak_gflops(target), other)


def _operations(func: tirx.PrimFunc) -> int | None:
    try:
        return operations(func)
    except Unsupported:
        return None


def _median(call: Callable[[], object], repeat: int) -> float:
    call()
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def _instrumented(
    vm: relax.VirtualMachine, entry: str, tensors: list[Any], repeat: int
) -> dict[str, tuple[int, float]]:
    """(calls, milliseconds of all calls) for each function that the virtual machine calls."""
    started = 0.0
    spent: dict[str, float] = {}
    calls: dict[str, int] = {}

    def instrument(_: Any, name: str, before: bool, __: Any, *___: Any) -> int:
        nonlocal started
        now = time.perf_counter()
        if before:
            started = time.perf_counter()
        else:
            spent[name] = spent.get(name, 0.0) + (now - started) * 1e3
            calls[name] = calls.get(name, 0) + 1
        return 0  # go on

    vm.set_instrument(instrument)
    runs: dict[str, list[float]] = {}
    for _ in range(repeat):
        spent.clear()
        calls.clear()
        vm[entry](*tensors)
        for name, ms in spent.items():
            runs.setdefault(name, []).append(ms)
    return {name: (calls[name], statistics.median(times)) for name, times in runs.items()}


def onnxruntime_ms(model: bytes, inputs: Sequence[Array], threads: int, repeat: int) -> float | None:
    """ONNX Runtime's time for the same call with as many threads, None where it is not installed."""
    try:
        import onnxruntime
    except ImportError:
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feeds = dict(zip((i.name for i in session.get_inputs()), inputs, strict=True))
    return _median(lambda: session.run(None, feeds), repeat)


def table(result: Profile, most: int = 30) -> str:
    """The profile as text, `most` functions of it."""
    lines = [f"{'ms':>9} {'share':>6} {'calls':>5} {'GFLOP/s':>8} {'of peak':>7}  function"]
    for f in result.functions[:most]:
        speed = "-" if f.gflops is None else f"{f.gflops:.1f}"
        peak = "-" if f.gflops is None else f"{f.gflops / result.peak_gflops:.0%}"
        lines.append(f"{f.milliseconds:9.3f} {f.share:6.1%} {f.calls:5d} {speed:>8} {peak:>7}  {f.name}")
    if (rest := result.functions[most:]) != ():
        lines.append(f"{sum(f.milliseconds for f in rest):9.3f} {sum(f.share for f in rest):6.1%}  {len(rest)} others")
    lines.append(f"{result.milliseconds:9.3f} ms in all; measured peak {result.peak_gflops:.0f} GFLOP/s")
    if result.onnxruntime_ms is not None:
        ratio = result.milliseconds / result.onnxruntime_ms
        lines.append(f"{result.onnxruntime_ms:9.3f} ms ONNX Runtime, ratio {ratio:.2f}")
    return "\n".join(lines)


_ROW, _WIDTH, _LABEL, _MARGIN = 22, 1100, 420, 12
_BAR, _TEXT, _BACK = (58, 110, 165), (30, 30, 30), (255, 255, 255)


def draw(result: Profile, path: Path, most: int = 30) -> None:
    """A bar a function as a PNG. Pillow draws it: some rectangles and lines of text are not worth matplotlib."""
    from PIL import Image, ImageDraw

    functions = result.functions[:most]
    image = Image.new("RGB", (_WIDTH, _ROW * (len(functions) + 2) + 2 * _MARGIN), _BACK)
    canvas = ImageDraw.Draw(image)
    title = f"{result.milliseconds:.3f} ms, measured peak {result.peak_gflops:.0f} GFLOP/s"
    if result.onnxruntime_ms is not None:
        title += f", ONNX Runtime {result.onnxruntime_ms:.3f} ms"
    canvas.text((_MARGIN, _MARGIN), title, fill=_TEXT)
    longest = max((f.milliseconds for f in functions), default=1.0) or 1.0
    room = _WIDTH - _LABEL - 230
    for at, f in enumerate(functions):
        top = _MARGIN + _ROW * (at + 1)
        canvas.text((_MARGIN, top + 4), f.name[:62], fill=_TEXT)
        right = _LABEL + max(1, int(room * f.milliseconds / longest))
        canvas.rectangle((_LABEL, top + 3, right, top + _ROW - 4), fill=_BAR)
        note = f"{f.milliseconds:.3f} ms  {f.share:.1%}"
        if f.gflops is not None:
            note += f"  {f.gflops:.0f} GFLOP/s ({f.gflops / result.peak_gflops:.0%})"
        canvas.text((right + 6, top + 4), note, fill=_TEXT)
    image.save(path, format="PNG")
