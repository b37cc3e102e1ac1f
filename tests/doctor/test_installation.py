"""What the doctor makes of installed packages and of variables."""

from __future__ import annotations

from zmq_offload.console.variables import PREFIX, VARIABLES
from zmq_offload.doctor.checks.findings import Level
from zmq_offload.doctor.checks.installation import (
    EXTRAS,
    Installation,
    check_installation,
    check_variables,
    met,
    requirement,
)
from zmq_offload.doctor.facts.installation import installation

REQUIRES = (
    "pyzmq>=26",
    'apache-tvm<0.28,>=0.27.0; extra == "tvm"',
    'apache-tvm-ffi==0.1.14.post1; extra == "tvm"',
    'zmq-offload[cli,tvm]; extra == "compile"',
    'onnx>=1.16; extra == "compile"',
    'rapidocr-onnxruntime==1.4.4; python_version < "3.13" and extra == "demo"',
)
GOOD = Installation(
    "3.11.7", "0.1.0", REQUIRES,
    {"pyzmq": "27.1", "apache-tvm": "0.27.0.post1", "apache-tvm-ffi": "0.1.14.post1", "onnx": "1.16.0",
     "rapidocr-onnxruntime": "1.4.4"}, "4.3.5", True, True, False,
)  # fmt: skip


def texts(facts: Installation, level: Level) -> list[str]:
    return [f"{f.text}; {f.remedy}" for f in check_installation(facts) if f.level is level]


def test_a_good_installation() -> None:
    assert {finding.level for finding in check_installation(GOOD)} == {Level.OK}
    assert "zmq-offload 0.1.0, Python 3.11.7, libzmq 4.3.5; " in texts(GOOD, Level.OK)


def test_wrong_versions_are_named() -> None:
    wrong = GOOD._replace(versions={**GOOD.versions, "apache-tvm-ffi": "0.1.15", "onnx": "1.2", "pyzmq": "25"})
    assert texts(wrong, Level.FAIL) == [
        "pyzmq 25 is installed, and this release needs pyzmq>=26; pip install zmq-offload",
        "apache-tvm-ffi 0.1.15 is installed, and the extra tvm needs apache-tvm-ffi==0.1.14.post1; "
        "pip install 'zmq-offload[tvm]'",
    ]
    assert texts(wrong, Level.WARNING) == [
        "onnx 1.2 is installed, and the extra compile needs onnx>=1.16; pip install 'zmq-offload[compile]'"
    ]


def test_missing_packages_and_extras_are_named() -> None:
    facts = GOOD._replace(versions={"apache-tvm": "0.27.0"})
    assert texts(facts, Level.FAIL) == ["missing packages: pyzmq; pip install zmq-offload"]
    notes = texts(facts, Level.NOTE)
    assert notes[0] == ("extra tvm is missing, for workers and devices: apache-tvm-ffi; pip install 'zmq-offload[tvm]'")
    assert len(notes) == 3
    assert len(texts(facts._replace(python="3.13.1"), Level.NOTE)) == 2, "not for Python 3.13"


def test_a_libzmq_without_keys_and_code_without_metadata_are_warned_of() -> None:
    (warning,) = texts(GOOD._replace(curve=False), Level.WARNING)
    assert "without CURVE" in warning and "pip install --force-reinstall pyzmq" in warning
    (warning,) = texts(GOOD._replace(requires=()), Level.WARNING)
    assert "no metadata" in warning


def test_it_is_said_why_compiled_code_is_not_used() -> None:
    (missing,) = texts(GOOD._replace(compiled=False), Level.NOTE)
    assert missing.startswith("not installed (zmq_offload.native.wire): Python does the same") and "compiler" in missing
    (off,) = texts(GOOD._replace(compiled=False, switched_off=True), Level.NOTE)
    assert off.startswith("switched off by ZMQ_OFFLOAD_NATIVE: Python does the same") and "unset" in off


def test_versions_are_compared_as_numbers() -> None:
    assert met(">=1.2,<2", "1.10") and not met(">=1.2", "1.1.9") and not met("<0.28", "0.28.0")
    assert met("==1.0", "1.0.0") and not met("==0.1.14.post1", "0.1.14") and met("<=1", "2"), "unknown operators hold"
    assert met("==1.4.4", "1.4.4+local")
    assert requirement("!!").name == "!!"


def test_misspelled_variables_are_named() -> None:
    (finding,) = check_variables({f"{PREFIX}HEARTBAET", "PATH"}, VARIABLES, PREFIX)
    assert finding.level is Level.WARNING
    assert finding.text == (
        f"unknown variable {PREFIX}HEARTBAET, which nothing reads; did you mean '{PREFIX}HEARTBEAT'?"
    )
    assert check_variables({f"{PREFIX}NAME"}, VARIABLES, PREFIX)[0].text == f"{PREFIX}NAME"
    assert check_variables({"PATH"}, VARIABLES, PREFIX)[0].text == "none is set"


def test_each_extra_for_users_is_known() -> None:
    named = {requirement(line).extra for line in installation().requires}
    assert named <= {"", *EXTRAS, "device", "docs", "test"}, "device is tvm by the name that users of devices know"


def test_facts_of_this_installation_can_be_gathered() -> None:
    here = installation()
    assert here.versions["pyzmq"] and here.libzmq
