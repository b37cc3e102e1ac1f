"""How many cores this process may use: those that the scheduler grants, and no more than a container's CPU quota."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

_UNLIMITED = math.inf


class _Mount(NamedTuple):
    """Where a cgroup hierarchy is mounted. `root` is the cgroup that is seen at `point`."""

    root: PurePosixPath
    point: Path
    version: int


def usable_cores() -> int:
    """Threads that can compute at a time: the cores of this process's affinity, limited by its CPU quota rounded down
    (one thread more than that is throttled in every period), and at least one."""
    granted = len(os.sched_getaffinity(0))
    quota = cpu_quota()
    return granted if quota is None else max(1, min(granted, math.floor(quota)))


def cpu_quota(system: Path = Path("/")) -> float | None:
    """The CPU quota of this process's cgroup, in cores (1.5: 150 ms of CPU time in 100 ms), or None if there is none.

    Reads cgroup v1 and v2, as mounted; the tightest limit on the way up from the process's own group counts. What
    cannot be read limits nothing. `system` is the folder in which /proc and the mounts are looked for.
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
    """The process's group by cgroup version, from lines such as "4:cpu,cpuacct:/docker/1f" and "0::/user.slice"."""
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
    """The cgroup hierarchies that can have a CPU quota, from /proc/self/mountinfo (see proc_pid_mountinfo(5))."""
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
    """mountinfo writes a space, a tab, a line feed and a backslash as \\ and three octal digits."""
    for code in ("040", "011", "012", "134"):
        path = path.replace(f"\\{code}", chr(int(code, 8)))
    return path


def _way_up(mount: _Mount, group: PurePosixPath) -> Iterator[Path]:
    """The folders of a group and of the groups around it, as far as the mount shows them.

    In a container the mount often shows the process's own group as its root, or the group is written relative to a
    namespace that the mount does not have (/../..). Then the mount itself is all there is to look at.
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
    """cpu.max is "QUOTA PERIOD" in microseconds, and "max" for no quota."""
    return _ratio(_read(folder / "cpu.max").split())


def _limit_v1(folder: Path) -> float:
    """A quota of -1 is none."""
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
