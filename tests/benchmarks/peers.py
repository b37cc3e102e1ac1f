"""The fabric compared with its alternatives: `python -m tests.benchmarks.peers`.

All send the same bytes each way. Each peer has a client process, in an environment of its own where it needs one, and
clients take turns of a fraction of a second. Prints a table and, with -o, draws it. With `--callers` it measures what
many callers at a time get: requests per second, and the median and the 99th percentile of their round trips. A peer
that is not installed is skipped by name. `--recorded FILE.md` measures nothing and draws the table in that file.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tests.benchmarks.fabric import SIZES
from tests.benchmarks.peer_client import CALLERS
from tests.benchmarks.peer_servers import SERVERS, client
from tests.support.servers import Missing
from zmq_offload.charts.bars import Bars, draw
from zmq_offload.charts.style import save

Medians = dict[str, dict[int, float]]
"""The median round trip, in seconds, by peer and bytes."""

OURS = "zmq-offload, echo"


@dataclass
class Sample:
    """Round trips, in seconds, and the time in which they were made."""

    seconds: float = 0.0
    times: list[float] = field(default_factory=list)

    def add(self, seconds: float, times: list[float]) -> None:
        self.seconds += seconds
        self.times += times


Samples = dict[tuple[str, int, int], Sample]
"""By peer, bytes and callers."""


def measure(sizes: list[int], callers: list[int], seconds: float, pythons: dict[str, str], only: list[str]) -> Samples:
    samples: Samples = {}
    with ExitStack() as stack:
        clients: dict[str, subprocess.Popen[str]] = {}
        kinds: dict[str, str] = {}
        for name in only:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="peer-")))
            try:
                served = stack.enter_context(SERVERS[name](folder, pythons.get(name, sys.executable), sizes))
                clients |= {peer: stack.enter_context(client(command)) for peer, command in served.items()}
                kinds |= {peer: command[1] for peer, command in served.items()}
            except Missing as error:
                print(f"skipped: {name}: {error}", file=sys.stderr)
        for size in sizes:
            for number in callers:
                able = {peer: one for peer, one in clients.items() if number == 1 or kinds[peer] in CALLERS}
                turn = 0.15 if size < 1 << 20 and number == 1 else 0.5
                samples |= {
                    (peer, size, number): sample for peer, sample in _turns(able, size, number, turn, seconds).items()
                }
                clients = {peer: one for peer, one in clients.items() if peer not in able or one.poll() is None}
                print(f"{size:,} bytes, {number} at a time: done", file=sys.stderr)
    return samples


def _turns(
    clients: dict[str, subprocess.Popen[str]], size: int, callers: int, turn: float, seconds: float
) -> dict[str, Sample]:
    """The samples of the peers that did not fail."""
    samples = {peer: Sample() for peer in clients}
    for number in range(max(2, round(seconds / turn))):
        for peer in list(samples):
            process = clients[peer]
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(json.dumps([size, turn, callers]) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
            if not answer:
                print(f"failed: {peer} at {size:,} bytes; its error is above", file=sys.stderr)
                process.wait()
                del samples[peer]
            elif number:  # the first turn is a warm-up
                samples[peer].add(*json.loads(answer))
    return samples


def medians_of(samples: Samples) -> Medians:
    """Of one caller."""
    medians: Medians = {}
    for (peer, size, callers), sample in samples.items():
        own = medians.setdefault(peer, {})
        if callers == 1:
            own[size] = statistics.median(sample.times)
    return medians


def callers_table(samples: Samples) -> str:
    """A line for each number of callers and peer; in brackets the ratio to the fabric with an echo worker."""
    lines = ["| bytes each way | callers | peer | requests/s | p50 ms | p99 ms |", "|---|---|---|---|---|---|"]
    for (peer, size, callers), sample in sorted(samples.items(), key=lambda item: item[0][1:]):
        figures = _figures(sample)
        ours = samples.get((OURS, size, callers))
        ratios = [""] * 3
        if ours is not None and peer != OURS:
            ratios = [f" ({one / other:.2f}x)" for one, other in zip(figures, _figures(ours), strict=True)]
        texts = f"{figures[0]:,.0f}", f"{figures[1]:.3f}", f"{figures[2]:.2f}"
        cells = " | ".join(text + ratio for text, ratio in zip(texts, ratios, strict=True))
        lines.append(f"| {size:,} | {callers} | {peer} | {cells} |")
    return "\n".join(lines)


def _figures(sample: Sample) -> tuple[float, float, float]:
    """Requests per second, and the median and the 99th percentile in milliseconds."""
    percentiles = statistics.quantiles(sample.times, n=100)
    return len(sample.times) / sample.seconds, percentiles[49] * 1e3, percentiles[98] * 1e3


def table(medians: Medians, sizes: list[int]) -> str:
    """Milliseconds, and in brackets the ratio to the fabric with an echo worker."""
    ours = medians.get(OURS)
    lines = [
        "| bytes each way | " + " | ".join(f"{size:,}" for size in sizes) + " |",
        "|---|" + "---|" * len(sizes),
    ]
    for peer, own in medians.items():
        cells = []
        for size in sizes:
            times = f" ({own[size] / ours[size]:.2f}x)" if size in own and ours and own is not ours else ""
            cells.append(f"{_ms(own[size])}{times}" if size in own else "failed")
        lines.append(f"| {peer} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3f} ms" if seconds < 0.01 else f"{seconds * 1e3:.1f} ms"


def recorded(text: str) -> tuple[Medians, list[int]]:
    """The medians and sizes of a text that contains a `table`."""
    lines = text.splitlines()
    head = next(at for at, line in enumerate(lines) if re.match(r"\| bytes each way \| \d", line))
    sizes = [int(cell.replace(",", "")) for cell in _cells(lines[head])[1:]]
    medians: Medians = {}
    for line in lines[head + 2 :]:
        if not line.startswith("|"):
            break
        peer, *cells = _cells(line)
        known = [(size, cell) for size, cell in zip(sizes, cells, strict=True) if cell != "failed"]
        medians[peer] = {size: float(cell.split()[0]) / 1e3 for size, cell in known}
    return medians, sizes


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def chart(medians: Medians, sizes: list[int]) -> Bars:
    """A panel for each size and a bar for each peer."""
    panels = {
        f"{size:,} bytes each way": {peer: own[size] for peer, own in medians.items() if size in own} for size in sizes
    }
    groups = {peer: 0 if peer.startswith("zmq-offload") else None if peer.startswith("bare") else 1 for peer in medians}
    return Bars("Round trip, median of interleaved runs", panels, list(medians), groups, _ms)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.peers", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), metavar="BYTES", help="multiples of 4")
    parser.add_argument("--seconds", type=float, default=4.0, help="for each peer and size")
    parser.add_argument("--callers", type=int, nargs="+", default=None, metavar="N", help="at a time")
    parser.add_argument("--only", nargs="+", choices=list(SERVERS), default=list(SERVERS))
    parser.add_argument("--triton-python", default=sys.executable, metavar="FILE", help="of Triton's environment")
    parser.add_argument("--mosec-python", default=sys.executable, metavar="FILE", help="of mosec's environment")
    parser.add_argument("--recorded", type=Path, metavar="FILE.md", help="draw the table in this file")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE.png", help="write a picture")
    args = parser.parse_args()
    pythons = {"triton": args.triton_python, "mosec": args.mosec_python}
    sizes: list[int] = args.sizes
    if args.recorded:
        medians, sizes = recorded(args.recorded.read_text())
    else:
        samples = measure(sizes, args.callers or [1], args.seconds, pythons, args.only)
        if args.callers:
            print(callers_table(samples))
        medians = medians_of(samples)
        if not args.callers:
            print(table(medians, sizes))
    if args.output:
        save(draw(chart(medians, sizes)), args.output)


if __name__ == "__main__":
    main()
