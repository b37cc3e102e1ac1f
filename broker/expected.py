"""When a worker would be done with a request: the rule for fleets of workers of different speed. Pure.

Where all workers of a pool are about as quick, the one with the fewest outstanding requests per slot is done first, and
nothing more need be known (`broker.scheduler`). A fleet of a GPU and some CPUs is not like that. There a request goes
to the worker that is expected to be done with it first, and it may *wait* for a quick worker that is busy while a slow
one is free:

- The time of a run is measured from the broker's side: from the dispatch, or from the worker's answer before, to the
  answer. So it has the way to the worker in it, and of what the worker says
  only the size of a batch counts, and its own time if other brokers use it too.
- A worker that has no measured time yet is taken to be as quick as the quickest one, so that it is tried. A worker that
  was not measured for long is believed less and less: its time approaches that of the quickest.
- A run that is late is expected to be late by as much again. So nothing waits for a worker that hangs.
- A request waits for a quicker worker at most `PATIENCE` times what the slow one would have taken: others may take
  the quick worker's turns, such as those of higher priority.
- A request that waits costs those behind it time, too. If it goes to a slow worker, it takes longer itself, and all
  that come until the queue is empty are done sooner, each by the time that the quick workers need for one. It goes
  there if they gain more than it loses. With one quick and one slow worker that is a threshold of the queue's length,
  which is the best rule (W. Lin and P. R. Kumar, "Optimal control of a queueing system with two heterogeneous
  servers", 1984). It is lower the more of the quick workers' time is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from broker.lifecycle import WorkerState
from broker.pace import LEAST, Pace
from broker.state import Worker

MIXED = 2.0
"""A pool is mixed if its slowest worker takes this many times as long as its quickest. Less may be noise."""

UNIFORM = 1.5
"""A mixed pool stays mixed until its slowest worker takes less than this many times as long as its quickest."""

FADES = 30.0, 200
"""After so many seconds, and the time in which so many requests come, half of the difference between a worker and the
quickest is forgotten, if it is not measured."""

BUSIEST = 0.85
"""The share of the quick workers' time that requests take, at most: the gain of those that come stays finite."""

PATIENCE = 2.0
"""A request that has waited so many times as long as a free worker would take for it goes to that one."""

ARRIVALS = 1 / 128
"""The weight of a new interval between requests in its moving average."""

PAUSE = 64.0
"""A longer interval than this many averages counts as this many: after a quiet night, requests come as before."""


@dataclass(slots=True)
class Arrivals:
    """How often requests for a model come: the average interval in seconds."""

    last: float
    interval: float = 0.0

    def came(self, now: float) -> None:
        """A request came."""
        interval, self.last = now - self.last, now
        if self.interval:
            self.interval += (min(interval, PAUSE * self.interval) - self.interval) * ARRIVALS
        else:
            self.interval = interval


def measured(
    worker: Worker, runs: tuple[str, int], dispatched_at: float, compute: float, batch: int, now: float
) -> bool:
    """Take a worker's answer into account: the first of a run of `batch` requests, which took `compute` seconds as the
    worker says. Returns whether pools have to be looked at again."""
    begun = worker.answered_at if worker.answered_at > dispatched_at else dispatched_at
    worker.answered_at = now
    run = now - begun
    if worker.elsewhere and 0 < compute < run:  # it worked for other brokers meanwhile
        run = compute
    pace = worker.paces.get(runs)
    if pace is None:
        run = max(run, LEAST)
        worker.paces[runs] = Pace(run, run / batch, now)
        return True
    return pace.add(run, batch, now)


def is_mixed(workers: Sequence[Worker], model: str, runs: dict[bytes, int], before: bool) -> bool:
    """Whether workers differ so much that their times have to be compared. `before`: whether they did until now."""
    least, most = float("inf"), 0.0
    for worker in workers:
        pace = worker.paces.get((model, runs[worker.peer]))
        if pace is not None:
            pace.weighed = each = pace.each
            doubt = 0.0 if before else pace.error
            least, most = min(least, each * (1 + doubt)), max(most, each * max(0.0, 1 - doubt))
    return most > (UNIFORM if before else MIXED) * least


def pick(
    workers: Sequence[Worker],
    model: str,
    runs: dict[bytes, int],
    longest: int,
    queued: int,
    waited: float,
    interval: float,
    now: float,
) -> tuple[Worker | None, float]:
    """The worker that should have a request now; None if it should wait.

    `queued`: the requests that wait, with this one; `waited`: the seconds that this one waits already; `interval`: the
    seconds between two that come. The other result is how many seconds from now to look again, if a worker is free but
    the request waits for a quicker one; 0 if none is free.
    """
    able = [w for w in workers if w.state is WorkerState.READY and longest <= w.max_frame_bytes]
    if not any(len(w.held) < w.slots for w in able):  # nearly always, if many wait
        return None, 0.0
    quickest = min((p.each for w in able if (p := w.paces.get((model, runs[w.peer]))) is not None), default=LEAST)
    fades = max(FADES[0], FADES[1] * interval)
    free: Worker | None = None
    done = soonest = float("inf")
    busy = []  # for each worker without a free slot: until it would be done with this one, and what each takes
    for worker in able:
        each, at = _done(worker, worker.paces.get((model, runs[worker.peer])), quickest, fades, now)
        if len(worker.held) >= worker.slots:
            busy.append((at, each))
            soonest = min(soonest, at)
        elif free is None or (at, worker.nbytes, worker.chosen) < (done, free.nbytes, free.chosen):
            free, done = worker, at
    if soonest >= done or waited >= PATIENCE * done:
        return free, 0.0
    rate = sum(1 / each for at, each in busy if at < done)
    share = min(BUSIEST, 1 / (interval * rate)) if interval else 0.0
    # While the queue empties, more come: `queued / (1 - share)` in all, of which each would be done `1 / rate` sooner.
    gain = (queued / (1 - share) - 1) / rate
    return (free, 0.0) if done - soonest <= gain else (None, max(min(done, PATIENCE * done - waited), 1e-3))


def _done(worker: Worker, pace: Pace | None, quickest: float, fades: float, now: float) -> tuple[float, float]:
    """What a request takes a worker, and in how many seconds it would be done with one more."""
    run = each = quickest
    variation = 1.0
    if pace is not None:
        each = quickest + (pace.each - quickest) * 0.5 ** ((now - pace.at) / fades)
        run, variation = pace.run * each / pace.each, pace.variation
    held = len(worker.held) + worker.elsewhere
    if not held:
        return each, run
    since = 0.0  # when it began what it holds for other brokers only, nobody told
    if worker.held:
        since = now - max(worker.answered_at, next(iter(worker.held.values())).dispatched_at)
    # A run that always takes as long ends when its time is over. Of one that varies, the past says less.
    left = run - since * (1 - variation) if since < run else max(since - run, variation * run)
    return each, left + max(run, held * each)
