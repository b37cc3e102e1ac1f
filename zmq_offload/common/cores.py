"""The number of cores that this process may use, by its affinity and by its container's CPU quota."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

_UNLIMITED = math.inf


class _Mount(NamedTuple):
    """Where a cgroup hierarchy is mounted: the cgroup `root` appears at the folder `point`."""

    root: PurePosixPath
    point: Path
    version: int


def usable_cores() -> int:
    """Return how many threads can compute at a time, at least 1.

    These are the cores of the process's affinity, but no more than its CPU quota rounded down: with a thread more than
    that, it is throttled in every period.
    """
    granted = len(os.sched_getaffinity(0))
    quota = cpu_quota()
    return granted if quota is None else max(1, min(granted, math.floor(quota)))


def cpu_quota(system: Path = Path("/")) -> float | None:
    """Return the CPU quota of this process's cgroup in cores, or None. 1.5 is 150 ms of CPU time in 100 ms.

    Reads cgroup v1 and v2. The tightest limit of the process's group and all groups around it counts. A file that
    cannot be read sets no limit. `system` is the folder that holds /proc and the mounts.
    """
    groups = _groups(_read(system / "proc/self/cgroup"))
    least = _UNLIMITED
    for mount in _mounts(_read(system / "proc/self/mountinfo")):
        group = groups.get(mount.version)
        if group is None:
            continue
        limit = _limit_v2 if mount.version == 2 else _limit_v1
        for folder in _way_up(mount, group):
            least = min(least, limit(system / folder.relative_to("/")))
    return None if least == _UNLIMITED else least


def _groups(text: str) -> dict[int, PurePosixPath]:
    """Return the process's group by cgroup version, from lines like "4:cpu,cpuacct:/docker/1f" and "0::/user.slice"."""
    found = {}
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            found[2] = PurePosixPath(path)
        elif "cpu" in controllers.split(","):
            found[1] = PurePosixPath(path)
    return found


def _mounts(text: str) -> Iterator[_Mount]:
    """Yield the cgroup hierarchies that can have a CPU quota, from /proc/self/mountinfo (proc_pid_mountinfo(5))."""
    for line in text.splitlines():
        mounted, _, source = line.partition(" - ")
        fields, of = mounted.split(), source.split()
        if len(fields) < 5 or len(of) < 3:
            continue
        root, point = PurePosixPath(_unescaped(fields[3])), Path(_unescaped(fields[4]))
        if of[0] == "cgroup2":
            yield _Mount(root, point, 2)
        elif of[0] == "cgroup" and "cpu" in of[2].split(","):
            yield _Mount(root, point, 1)


def _unescaped(path: str) -> str:
    """Decode a path of mountinfo, where spaces, tabs, line ends and backslashes are \\ and three octal digits."""
    for code in ("040", "011", "012", "134"):
        path = path.replace(f"\\{code}", chr(int(code, 8)))
    return path


def _way_up(mount: _Mount, group: PurePosixPath) -> Iterator[Path]:
    """Yield the folders of a group and of the groups around it, as far as the mount shows them.

    In a container the mount often has the process's own group as its root, or the group is written relative to another
    namespace (/../..). Then only the mount itself is yielded.
    """
    inside = PurePosixPath("")
    if ".." not in group.parts and group.is_relative_to(mount.root):
        inside = group.relative_to(mount.root)
    place = mount.point / inside
    yield place
    while place != mount.point:
        place = place.parent
        yield place


def _limit_v2(folder: Path) -> float:
    """Read cpu.max: "QUOTA PERIOD" in microseconds; a QUOTA of "max" is none."""
    return _ratio(_read(folder / "cpu.max").split())


def _limit_v1(folder: Path) -> float:
    """Read cpu.cfs_quota_us and cpu.cfs_period_us; a quota of -1 is none."""
    return _ratio([*_read(folder / "cpu.cfs_quota_us").split(), *_read(folder / "cpu.cfs_period_us").split()])


def _ratio(words: list[str]) -> float:
    try:
        quota, period = map(int, words)
    except ValueError:
        return _UNLIMITED
    return quota / period if quota > 0 and period > 0 else _UNLIMITED


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
