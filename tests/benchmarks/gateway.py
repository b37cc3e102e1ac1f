"""The gateway compared with Triton and mosec: `python -m tests.benchmarks.gateway`.

All return the FP32 tensor that they get: the gateway through a broker and a worker, once with the
broker in its own process and once with it in the gateway's, Triton through its Python backend.
Their clients are tritonclient, one process for each server, in turns of half a second (for mosec, which speaks its own
HTTP, http.client and aiohttp), and with --perf-analyzer also NVIDIA's perf_analyzer, which takes less of the machine.
Prints a table and, with -o, draws it. A server that is not installed is skipped by name. `--recorded FILE.md` measures
nothing and draws the tables in that file.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.benchmarks.gateway_client import MODEL
from tests.benchmarks.gateway_servers import SERVERS, Server
from tests.support.processes import ROOT
from tests.support.servers import Missing
from zmq_offload.charts.bars import Bars, draw
from zmq_offload.charts.style import save

SIZES = (1024, 38_400, 1 << 20)
CALLERS = (1, 16, 64)
TURN = 0.5


@dataclass
class Cell:
    """What one client measured at one server. Times are in seconds; `p50` and `p99` are of the round trip, `cpu` is of
    a request, by process."""

    rate: float
    p50: float
    p99: float
    cpu: Counter[str]


Point = tuple[int, int]
"""Bytes each way, and callers."""

Cells = dict[Point, dict[str, Cell]]


@dataclass
class Turns:
    """What the turns at one server add up to."""

    times: list[float] = field(default_factory=list)
    seconds: float = 0.0
    cpu: Counter[str] = field(default_factory=Counter)
    requests: int = 0

    def cell(self) -> Cell:
        ranked = statistics.quantiles(self.times, n=100) if len(self.times) > 1 else self.times * 99
        return Cell(len(self.times) / self.seconds, ranked[49], ranked[98], _each(self.cpu, self.requests))


def _each(cpu: Counter[str], requests: int) -> Counter[str]:
    return Counter({name: seconds / requests for name, seconds in cpu.items()})


@contextmanager
def _client(server: Server) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.gateway_client", server.kind, server.url],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise Missing(f"the client of {server.name} failed; its error is above")
        yield process
    finally:
        process.kill()
        process.communicate()


def by_tritonclient(servers: Sequence[Server], points: Sequence[Point], seconds: float) -> Cells:
    """In turns: whatever else the machine does falls on all servers alike."""
    cells: Cells = {}
    with ExitStack() as stack:
        clients = [(server, stack.enter_context(_client(server))) for server in servers]
        for size, callers in points:
            turns = {server.name: Turns() for server in servers}
            for number in range(1 + max(1, round(seconds / TURN))):
                for server, process in clients:
                    assert process.stdin is not None and process.stdout is not None
                    before = server.cpu()
                    process.stdin.write(json.dumps([size, callers, TURN]) + "\n")
                    process.stdin.flush()
                    answer = process.stdout.readline()
                    if not answer:
                        raise SystemExit(f"the client of {server.name} failed; its error is above")
                    if number:  # the first turn is a warm-up
                        took, times = json.loads(answer)
                        own = turns[server.name]
                        own.times += times
                        own.seconds += took
                        own.cpu += server.cpu() - before
                        own.requests += len(times) + 1  # one more, whose result was checked
            cells[size, callers] = {name: own.cell() for name, own in turns.items()}
            print(f"tritonclient: {size:,} bytes, {callers} callers done", file=sys.stderr)
    return cells


def by_perf_analyzer(program: str, servers: Sequence[Server], points: Sequence[Point], seconds: float) -> Cells:
    """One run after the other. The CPU time is of the whole run, and so is the server's count of requests."""
    cells: Cells = {}
    with tempfile.TemporaryDirectory() as folder:
        for size, callers in points:
            for server in servers:
                before, counted = server.cpu(), server.count()
                command = [
                    program, "-m", MODEL, "-u", server.url, "-i", server.kind, "--shape", f"x:1,{size // 4}",
                    "--concurrency-range", str(callers), "-s", "999", "-r", "10", "-p", str(round(seconds / 3 * 1000)),
                    "-f", "result.csv",
                ]  # fmt: skip
                done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise SystemExit(f"perf_analyzer failed at {server.name}: {done.stdout}{done.stderr}")
                cpu, requests = server.cpu() - before, server.count() - counted
                (row,) = csv.DictReader((Path(folder) / "result.csv").read_text().splitlines())
                times = (float(row[f"{percentile} latency"]) / 1e6 for percentile in ("p50", "p99"))
                rate = float(row["Inferences/Second"])
                cells.setdefault((size, callers), {})[server.name] = Cell(rate, *times, _each(cpu, requests))
            print(f"perf_analyzer: {size:,} bytes, {callers} callers done", file=sys.stderr)
    return cells


_HEAD = "| bytes each way | callers | server | requests/s | p50 ms | p99 ms | server CPU µs |"


def table(cells: Cells) -> str:
    """A row for each server; in brackets, of its requests/s, how often those of Triton over the same protocol."""
    lines = [_HEAD, "|---|---|---|---|---|---|---|"]
    for (size, callers), servers in cells.items():
        for name, cell in servers.items():
            theirs = servers.get(f"Triton, {name.rpartition(', ')[2]}")
            parts = ", ".join(f"{part} {seconds * 1e6:,.0f}" for part, seconds in cell.cpu.items())
            of_them = f" ({parts})" if len(cell.cpu) > 1 else ""
            ratio = f" ({cell.rate / theirs.rate:.2f}x)" if theirs and theirs is not cell else ""
            lines.append(
                f"| {size:,} | {callers} | {name} | {cell.rate:,.0f}{ratio} | {cell.p50 * 1e3:.3f} "
                f"| {cell.p99 * 1e3:.2f} | {sum(cell.cpu.values()) * 1e6:,.0f}{of_them} |"
            )
    return "\n".join(lines)


def recorded(text: str) -> Cells:
    """The first `table` in a text."""
    cells: Cells = {}
    lines = text.splitlines()
    for line in lines[lines.index(_HEAD) + 2 :]:
        if not line.startswith("|"):
            break
        size, callers, name, *values = (cell.strip() for cell in line.strip("|").split("|"))
        rate, p50, p99, cpu = (float(value.split()[0].replace(",", "")) for value in values)
        point = int(size.replace(",", "")), int(callers)
        cells.setdefault(point, {})[name] = Cell(rate, p50 / 1e3, p99 / 1e3, Counter(server=cpu / 1e6))
    return cells


def chart(cells: Cells) -> Bars:
    """A panel for each size and number of callers, and a bar for each server."""
    panels = {
        f"{size:,} bytes, {callers} {'caller' if callers == 1 else 'callers'}": {
            name: cell.rate for name, cell in servers.items()
        }
        for (size, callers), servers in cells.items()
    }
    names = list(dict.fromkeys(name for panel in panels.values() for name in panel))
    groups = {name: 0 if name.startswith("zmq-offload") else 1 for name in names}
    return Bars("Requests per second, as many bytes each way", panels, names, groups, lambda rate: f"{rate:,.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.gateway", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), metavar="BYTES", help="multiples of 4")
    parser.add_argument("--callers", type=int, nargs="+", default=list(CALLERS), metavar="N")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each client, server, size and callers")
    parser.add_argument("--only", nargs="+", choices=list(SERVERS), default=list(SERVERS))
    parser.add_argument("--triton-python", default=sys.executable, metavar="FILE", help="of Triton's environment")
    parser.add_argument("--mosec-python", default=sys.executable, metavar="FILE", help="of mosec's environment")
    parser.add_argument("--perf-analyzer", default="", metavar="FILE", help="the program, for a second table")
    parser.add_argument("--recorded", type=Path, metavar="FILE.md", help="draw the first table in this file")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE.png", help="write a picture")
    args = parser.parse_args()
    points = [(size, callers) for size in args.sizes for callers in args.callers]
    cells = recorded(args.recorded.read_text()) if args.recorded else measure(args, points)
    if args.output:
        save(draw(chart(cells)), args.output)


def measure(args: argparse.Namespace, points: Sequence[Point]) -> Cells:
    """Measure and print. Returns what is drawn: the cheaper client's cells."""
    pythons = {"triton": args.triton_python, "mosec": args.mosec_python}
    with ExitStack() as stack:
        servers: list[Server] = []
        for name in args.only:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="peer-")))
            try:
                servers += stack.enter_context(SERVERS[name](folder, pythons.get(name, sys.executable)))
            except Missing as error:
                print(f"skipped: {name}: {error}", file=sys.stderr)
        cells = by_tritonclient(servers, points, args.seconds)
        print(f"tritonclient:\n\n{table(cells)}", flush=True)
        if args.perf_analyzer:
            counting = [server for server in servers if server.statistics]
            cells = by_perf_analyzer(os.path.abspath(args.perf_analyzer), counting, points, args.seconds)
            print(f"\nperf_analyzer:\n\n{table(cells)}")
    return cells


if __name__ == "__main__":
    main()
