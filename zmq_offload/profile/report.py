"""A profile as text, CSV and JSON, and the numbers for its chart. No TVM in here."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence

from zmq_offload.charts.functions import FunctionsChart, Row
from zmq_offload.common.units import counted
from zmq_offload.console.tables import Column, Facts, Part, Table
from zmq_offload.profile.result import VM, Function, Profile


def describe(profile: Profile, top: int) -> list[Part]:
    """The facts and the table, for people."""
    functions = profile.shown(top)
    unit, factor = unit_for(max(f.seconds for f in functions))
    columns = (
        Column("FUNCTION", folds=True),
        Column("OUTPUT", spare=3),
        Column("CALLS", right=True, spare=2),
        Column(f"TIME {unit}", right=True),
        Column("SHARE", right=True),
        Column("GFLOP/S", right=True),
        Column("OF PEAK", right=True, spare=1),
    )
    return [Facts(facts(profile)), "", Table(columns, [_row(profile, function, factor) for function in functions])]


def facts(profile: Profile) -> list[tuple[str, str]]:
    """The lines above the table: a word and a sentence each."""
    measured, whole = profile.measured, profile.whole()
    found = [
        ("model", f"{profile.title} ({profile.kind}), {profile.inputs}"),
        ("target", f"{target_name(profile.target)}, {counted(profile.threads, 'thread')}"),
        (
            "run",
            f"{duration(measured.total)}, the median of {profile.repeat}; "
            f"{duration(measured.profiled)} while profiled; the functions' medians add up to {duration(profile.sum)}",
        ),
    ]
    rate = profile.rate(whole)
    if rate is not None:
        share = f", {rate / profile.peak:.1%} of the peak" if profile.peak else ""
        found.append(("work", f"{(whole.flops or 0) / 1e9:.3g} GFLOP a run: {rate / 1e9:.1f} GFLOP/s{share}"))
    if profile.peak:
        found.append(("peak", f"{profile.peak / 1e9:.0f} GFLOP/s, measured: float32 multiply-adds in registers"))
    if measured.reference is not None:
        ratio = measured.total / measured.reference
        found.append(("compared", f"ONNX Runtime takes {duration(measured.reference)}, TVM {ratio:.2f} times as long"))
    return [*found, *(("note", note) for note in profile.notes)]


def chart(profile: Profile, top: int) -> FunctionsChart:
    """The `top` functions by time."""
    functions = profile.shown(top)
    unit, factor = unit_for(max(f.seconds for f in functions))
    title = f"Where the time goes: {profile.title}"
    return FunctionsChart(title, facts(profile), unit, [_bar(profile, f, unit, factor) for f in functions])


def _bar(profile: Profile, function: Function, unit: str, factor: float) -> Row:
    rate, of_peak = profile.rate(function), profile.of_peak(function)
    calls = counted(function.calls, "call")
    notes = [f"{profile.share(function):.1%}"]
    if rate is not None:
        notes.append(f"{rate / 1e9:.1f} GFLOP/s")
    if of_peak is not None:
        notes.append(f"{of_peak:.1%} of peak")
    return Row(
        name_of(function, 44),
        f"{function.output}   {calls}" if function.output else calls,
        function.seconds * factor,
        f"{function.seconds * factor:.2f} {unit}",
        ", ".join(notes),
        "offloaded" if function.model else "machine" if function.name == VM else "model",
        of_peak,
    )


def to_json(profile: Profile) -> str:
    measured = profile.measured
    return json.dumps(
        {
            "model": profile.title,
            "kind": profile.kind,
            "inputs": profile.inputs,
            "target": profile.target,
            "threads": profile.threads,
            "repeat": profile.repeat,
            "seconds": measured.total,
            "seconds_profiled": measured.profiled,
            "seconds_onnxruntime": measured.reference,
            "peak_flops": profile.peak,
            "notes": list(profile.notes),
            "functions": [
                {
                    "function": f.name,
                    "offloaded_model": f.model,
                    "output": f.output,
                    "calls": f.calls,
                    "seconds": f.seconds,
                    "share": profile.share(f),
                    "flops": f.flops,
                    "flops_per_second": profile.rate(f),
                    "share_of_peak": profile.of_peak(f),
                }
                for f in measured.functions
            ],
        },
        indent=2,
    )


def to_csv(profile: Profile) -> str:
    text = io.StringIO()
    functions: Sequence[dict[str, object]] = json.loads(to_json(profile))["functions"]
    writer = csv.DictWriter(text, list(functions[0]))
    writer.writeheader()
    writer.writerows(functions)
    return text.getvalue()


def name_of(function: Function, width: int) -> str:
    """The name of a function, shortened in the middle."""
    name = f"{function.model} (offloaded)" if function.model else function.name
    if len(name) <= width:
        return name
    tail = (width - 1) // 3
    return f"{name[: width - 1 - tail]}…{name[-tail:]}"


def target_name(target: object) -> str:
    """A short name for a target: its kind and CPU."""
    if isinstance(target, dict):
        return " ".join(str(part) for part in (target.get("kind"), target.get("mtriple"), target.get("mcpu")) if part)
    return str(target)


def unit_for(seconds: float) -> tuple[str, float]:
    """A unit for `seconds`, and the number of units in a second."""
    return ("ms", 1e3) if seconds >= 1e-3 else ("µs", 1e6)


def duration(seconds: float) -> str:
    unit, factor = unit_for(seconds)
    return f"{seconds * factor:.3g} {unit}" if seconds * factor < 1000 else f"{seconds * factor:,.0f} {unit}"


def _row(profile: Profile, function: Function, factor: float) -> tuple[str, ...]:
    rate, of_peak = profile.rate(function), profile.of_peak(function)
    return (
        name_of(function, 56),
        function.output,
        str(function.calls),
        f"{function.seconds * factor:.3f}",
        f"{profile.share(function):.1%}",
        "" if rate is None else f"{rate / 1e9:.1f}",
        "" if of_peak is None else f"{of_peak:.1%}",
    )
