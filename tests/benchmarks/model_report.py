"""The table, the picture and the page of `bench_models`, made from its results.

Results are rows by target and network: `results["x86-64-v3"]["resnet18"]`. What depends little on the target, such as
the time of compiling, is that of the first.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = dict[str, Any]
Results = Mapping[str, Mapping[str, Row]]
THREADS = (1, 2)
MEAN_BAR, WORST_BAR = 0.9, 1.3
"""What the geometric mean of the ratios should be at most, and each of them."""
SMALL, PRECISE = 1e-3, 1e-4
"""Where all values of a result are below the first, such as probabilities of what an image does not show, a relative
difference above the second says little; the absolute one is shown."""
_PICTURE = "networks.svg"
_PLACE = re.compile(r"(<!-- bench_models: .*? -->\n).*(<!-- end of bench_models -->)", re.DOTALL)


def ratio(row: Row | None, threads: int) -> float | None:
    """Our time divided by ONNX Runtime's, if both were measured."""
    ours = (row or {}).get(f"ours ms {threads}")
    return None if row is None or ours is None else float(ours / row[f"ort ms {threads}"])


def geometric_mean(values: Iterable[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, values)))


def plural(threads: int) -> str:
    return f"{threads} thread{'s' * (threads > 1)}"


def compile_seconds(row: Row) -> float:
    """CPU seconds from the file to the library."""
    return float(row["import s"] + row["build s"])


def memory_bar(row: Row) -> float:
    """MB that compiling may take."""
    return float(6 * row["weights MB"] + 400)


def difference(row: Row) -> str:
    """The largest difference from ONNX Runtime, relative to the largest value of the result, or absolute."""
    absolute = row["largest"] < SMALL and row["off"] > PRECISE
    return f"{row['off'] * row['largest']:.0e} abs." if absolute else f"{row['off']:.0e}"


def table(results: Results) -> str:
    """A line for each network: times and ratios for each target, then the difference, compiling and memory."""
    heads = [f"{plural(n)}, {target}: ms" for target in results for n in THREADS]
    lines = [
        f"| network | {' | '.join(f'{h} | ratio' for h in heads)} | difference | compile, CPU s | of TVM's default "
        "| peak MB | bar |",
        "|---|" + "---:|" * (2 * len(heads) + 5),
    ]
    first, *others = results.values()
    for family, names in groupby(first, lambda name: first[name]["family"]):
        lines.append(f"| **{family}** |" + " |" * (2 * len(heads) + 5))
        lines += [_line(name, first[name], [o.get(name, {}) for o in others]) for name in names]
    return "\n".join(lines)


def _line(name: str, row: Row, others: list[Row]) -> str:
    cells = []
    for each in (row, *others):
        for threads in THREADS:
            found = ratio(each, threads)
            cells += ["", ""] if found is None else [_time(each[f"ours ms {threads}"]), f"{found:.2f}"]
    if "error" in row:
        cells += [row["error"].replace("|", "/"), "", "", "", ""]
    else:
        default = row.get("default build s")
        cells += [
            difference(max((r for r in (row, *others) if "off" in r), key=lambda r: float(r["off"]))),
            f"{compile_seconds(row):.1f}",
            f"{row['build s'] / default:.1f}" if default else "",
            f"{row['peak MB']:.0f}",
            f"{memory_bar(row):.0f}",
        ]
    return f"| {name} | " + " | ".join(cells) + " |"


def _time(ms: float) -> str:
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.3g}"


def summary(results: Results) -> str:
    """Geometric means, and what is beyond a bar."""
    first = next(iter(results.values()))
    good = {name: row for name, row in first.items() if "error" not in row}
    lines = [f"{len(good)} of {len(first)} networks of {len({r['family'] for r in first.values()})} families."]
    lines += [_ratios(target, threads, rows) for target, rows in results.items() for threads in THREADS]
    if good:
        longest = max(good, key=lambda name: compile_seconds(good[name]))
        lines.append(f"Longest compile: {longest}, {compile_seconds(good[longest]):.1f} CPU seconds.")
        slower = {n: r["build s"] / r["default build s"] for n, r in good.items() if r.get("default build s")}
        if slower:
            lines.append(f"Compile at most {max(slower.values()):.1f} times TVM's default pipeline.")
        above = [n for n, row in good.items() if row["peak MB"] > memory_bar(row)]
        lines.append(f"Memory above 6 times the weights and 400 MB: {', '.join(above) or 'none'}.")
    return "\n".join(f"- {line}" for line in lines)


def _ratios(target: str, threads: int, rows: Mapping[str, Row]) -> str:
    ratios = {name: r for name, row in rows.items() if (r := ratio(row, threads)) is not None}
    if not ratios:
        return f"{target}, {plural(threads)}: not measured."
    slow = ", ".join(f"{n} {r:.2f}" for n, r in sorted(ratios.items(), key=lambda x: -x[1]) if r > WORST_BAR)
    return (
        f"{target}, {plural(threads)}: geometric mean {geometric_mean(ratios.values()):.2f}, largest "
        f"{max(ratios.values()):.2f} ({max(ratios, key=lambda name: ratios[name])})"
        + (f"; above {WORST_BAR}: {slow}." if slow else ".")
    )


def draw(results: Results, path: Path) -> None:
    """A panel for each target, and a line for each network, by family: filled for one thread, hollow for two."""
    from zmq_offload.charts.style import save, styled

    first = next(iter(results.values()))
    families = [(family, list(names)) for family, names in groupby(first, lambda name: first[name]["family"])]
    places: dict[str, int] = {}
    heads: dict[str, int] = {}
    for family, names in families:
        heads[family] = len(places) + len(heads)
        for name in names:
            places[name] = len(places) + len(heads)
    lines = ["Time of a call divided by ONNX Runtime's, without tuning. Left of 1 is faster."]
    count = len(places) + len(heads)
    with styled(0.6 + 0.135 * count, "Networks beside ONNX Runtime", lines) as figure:
        panels = figure.subplots(1, len(results), squeeze=False, sharey=True, sharex=True)[0]
        for axes, (target, rows) in zip(panels, results.items(), strict=True):
            _panel(axes, target, rows, places, heads)
        ticks = sorted([*heads.items(), *places.items()], key=lambda item: item[1])
        panels[0].set_yticks([at for _, at in ticks], [name for name, _ in ticks])
        panels[0].set_ylim(count - 0.3, -0.7)
        for label in panels[0].get_yticklabels():
            if label.get_text() in heads:
                label.set_fontweight("bold")
            label.set_fontsize(7)
        for axes in panels:
            axes.tick_params(axis="y", length=0)
        figure.get_layout_engine().set(wspace=0.04)  # type: ignore[union-attr, call-arg]
    save(figure, path)


def _panel(
    axes: Axes, target: str, rows: Mapping[str, Row], places: Mapping[str, int], heads: Mapping[str, int]
) -> None:
    from zmq_offload.charts.style import COLORS, FAINT

    blue, orange, red = COLORS[:3]
    known = [r for row in rows.values() for n in THREADS if (r := ratio(row, n)) is not None]
    axes.set_title(target)
    axes.axvline(1.0, color=FAINT, linewidth=1.0)
    axes.axvline(WORST_BAR, color=red, linewidth=0.8, linestyle=":")
    for threads in THREADS:
        points = [(r, at) for name, at in places.items() if (r := ratio(rows.get(name), threads)) is not None]
        if not points:
            continue
        color = blue if threads == 1 else orange
        face = color if threads == 1 else "none"
        mean = geometric_mean(r for r, _ in points)
        axes.axvline(mean, color=color, linewidth=0.9, linestyle="--")
        label = f"{plural(threads)} (mean {mean:.2f})"
        xs, ys = zip(*points, strict=True)
        axes.scatter(xs, ys, s=16, edgecolors=color, facecolors=face, linewidths=1.0, zorder=3, label=label)
    for at in heads.values():
        axes.axhspan(at - 0.5, at + 0.5, color="white", zorder=0.9)
    axes.grid(visible=True, axis="y", linewidth=0.5)
    axes.set_xlim(0, max([1.4, *known]) * 1.03)
    axes.tick_params(axis="x", top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.legend(loc="upper right", bbox_to_anchor=(1.02, 0), fontsize=7, ncols=2, columnspacing=1.0, handletextpad=0.2)


def write_page(results: Results, folder: Path, cpu: str) -> None:
    """Put the summary and the table between the markers of `folder`/compute.md, and the picture beside it."""
    page = folder / "compute.md"
    text = page.read_text()
    if not _PLACE.search(text):
        raise SystemExit(f"{page} has no markers <!-- bench_models: ... --> and <!-- end of bench_models -->")
    draw(results, folder / _PICTURE)
    body = f"Measured on {cpu}.\n\n{summary(results)}\n\n![Ratios]({_PICTURE})\n\n{table(results)}\n"
    page.write_text(_PLACE.sub(lambda match: match[1] + body + match[2], text))
