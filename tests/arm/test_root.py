"""The arm64 root in which tests run what a device runs."""

from __future__ import annotations

import pytest

from tests.arm.root import Missing, Root, arm_root, closure


def test_packages_bring_what_they_depend_on() -> None:
    known = {
        "python3": {"Depends": "libc6 (>= 2.36), mta | mail-reader, python3:any", "Pre-Depends": "base-files"},
        "libc6": {"Depends": "libgcc-s1 [arm64]"},
        "libgcc-s1": {"Depends": "libc6 (>= 2.35)"},
        "mail-reader": {},
        "base-files": {},
        "unrelated": {"Depends": "python3"},
    }
    assert closure(known, ["python3"]) == {"python3", "libc6", "libgcc-s1", "mail-reader", "base-files"}


@pytest.mark.arm
def test_a_program_of_the_root_runs(arm64: Root) -> None:
    script = "import platform, tvm, zmq, zmq_offload; print(platform.machine(), tvm.__version__)"
    done = arm64.run(["python3", "-c", script], cpu="cortex-a72", more={"TVM_USE_RUNTIME_LIB": "1"})
    assert done.stdout.split()[0] == "aarch64"


def test_what_is_missing_is_told_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Missing, match="qemu-user-static, is missing"):
        arm_root()
