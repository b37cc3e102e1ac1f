"""How many cores a process may use: its affinity, and a container's CPU quota (cgroup v1 and v2)."""

from __future__ import annotations

from pathlib import Path

import pytest

from zmq_offload.common import cores
from zmq_offload.common.cores import cpu_quota, usable_cores

V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "31 23 0:28 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n"
    "34 31 0:31 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct\n"
)


def tree(root: Path, mounts: str, groups: str, files: dict[str, str]) -> Path:
    for name, text in {"proc/self/mountinfo": mounts, "proc/self/cgroup": groups, **files}.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


def v1(folder: str, quota: int, period: int = 100_000) -> dict[str, str]:
    place = f"sys/fs/cgroup/cpu,cpuacct{folder}"
    return {f"{place}/cpu.cfs_quota_us": f"{quota}\n", f"{place}/cpu.cfs_period_us": f"{period}\n"}


def v2(folder: str, limit: str) -> dict[str, str]:
    return {f"sys/fs/cgroup{folder}/cpu.max": limit + "\n"}


@pytest.mark.parametrize(
    ("mounts", "groups", "files", "expected"),
    [
        pytest.param("", "", {}, None, id="no cgroups"),
        pytest.param(V2, "0::/\n", {}, None, id="v2, the root group has no limit"),
        pytest.param(V2, "0::/\n", v2("", "150000 100000"), 1.5, id="v2, a container with a namespace"),
        pytest.param(V2, "0::/\n", v2("", "max 100000"), None, id="v2, max"),
        pytest.param(V2, "0::/\n", v2("", "50000 100000"), 0.5, id="v2, half a core"),
        pytest.param(V2, "0::/\n", v2("", "20000 10000"), 2.0, id="v2, another period"),
        pytest.param(V2, "0::/a/b\n", v2("/a", "100000 100000") | v2("/a/b", "max 100000"), 1.0, id="v2, around it"),
        pytest.param(V2, "0::/a/b\n", v2("/a", "400000 100000") | v2("/a/b", "300000 100000"), 3.0, id="v2, its own"),
        pytest.param(V2, "0::/a/b\n", v2("/c", "100000 100000"), None, id="v2, another group's"),
        pytest.param(V2, "0::/../../x\n", v2("", "100000 100000"), 1.0, id="v2, outside of the namespace"),
        pytest.param(V2, "0::/\n", v2("", "damaged"), None, id="v2, not readable"),
        pytest.param(V2, "0::/\n", v2("", "0 0"), None, id="v2, zeros"),
        pytest.param(
            V2.replace(" / /sys", " /docker/1f /sys"),
            "0::/docker/1f\n",
            v2("", "200000 100000"),
            2.0,
            id="v2, the mount shows the group as its root",
        ),
        pytest.param(V1, "4:cpu,cpuacct:/\n3:cpuset:/\n", v1("", -1), None, id="v1, -1"),
        pytest.param(V1, "4:cpu,cpuacct:/\n0::/\n", v1("", 250_000), 2.5, id="v1"),
        pytest.param(
            V1, "4:cpuacct,cpu:/d/1f\n", v1("", -1) | v1("/d", 100_000) | v1("/d/1f", -1), 1.0, id="v1, nested"
        ),
        pytest.param(
            V1.replace("0:29 / ", "0:29 /docker/1f "),
            "4:cpu,cpuacct:/docker/1f\n",
            v1("", 50_000, 25_000),
            2.0,
            id="v1, docker without a namespace",
        ),
        pytest.param(V1, "5:cpuset:/\n", v1("", 100_000), None, id="v1, no group of the cpu controller"),
        pytest.param(
            V1 + V2.replace("/sys/fs/cgroup", "/sys/fs/cgroup/unified"),
            "4:cpu:/\n0::/\n",
            v1("", 100_000),
            1.0,
            id="both, the controller is v1's",
        ),
        pytest.param(
            "30 23 0:26 / /sys/fs/my\\040group rw - cgroup2 c rw\n",
            "0::/\n",
            {"sys/fs/my group/cpu.max": "100000 100000"},
            1.0,
            id="a space",
        ),
        pytest.param("nonsense\n1 2 3 - \n", "nonsense\n::\n", {}, None, id="nonsense"),
    ],
)
def test_the_tightest_limit_counts(
    tmp_path: Path, mounts: str, groups: str, files: dict[str, str], expected: float | None
) -> None:
    assert cpu_quota(tree(tmp_path, mounts, groups, files)) == expected


@pytest.mark.parametrize(
    ("granted", "quota", "expected"), [(8, None, 8), (8, 3.9, 3), (8, 0.5, 1), (2, 4.0, 2), (1, None, 1)]
)
def test_usable_cores_are_limited_by_affinity_and_quota(
    granted: int, quota: float | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda _: set(range(granted)))
    monkeypatch.setattr(cores, "cpu_quota", lambda: quota)
    assert usable_cores() == expected
