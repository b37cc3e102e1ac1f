"""Events of the log: one line each, as text or as JSON, whatever a peer or an exception says."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys

import pytest

from zmq_offload.console.logs import Json, Text, fields

NASTY = "a\nforged\x1b[31m\r\u2028\x85"


def record(message: str, extra: dict[str, object] | None = None, *, fails: bool = False) -> logging.LogRecord:
    caught = None
    if fails:
        try:
            raise ValueError("two\nlines")
        except ValueError:
            caught = sys.exc_info()
    made = logging.LogRecord("broker", logging.WARNING, __file__, 1, "%s", (message,), caught)
    made.__dict__.update(extra or {})
    return made


def test_an_event_of_json_is_an_object_of_one_line() -> None:
    line = Json("worker", {"worker": "w1"}).format(record(NASTY, fields(request="00/1", model=None), fails=True))
    assert len(line.splitlines()) == 1 and line.isascii() and line.isprintable()
    event = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", event.pop("time"))
    assert "ValueError: two\nlines" in event.pop("exception") and event.pop("pid")
    assert event == {
        "level": "warning", "program": "worker", "logger": "broker", "message": NASTY, "worker": "w1", "request": "00/1"
    }  # fmt: skip


def test_an_event_of_text_is_a_line_with_its_exception() -> None:
    line = Text().format(record(NASTY, fails=True))
    assert len(line.splitlines()) == 1 and line.isprintable()
    assert re.match(r"[\d-]+ [\d:,]+ broker WARNING a\\nforged\\x1b\[31m", line)
    assert r"\nValueError: two\nlines" in line


def test_a_text_begins_with_which_of_several_processes_it_is_of() -> None:
    assert Text({"process": 2}).format(record("stopped")).endswith("WARNING process 2: stopped")
    assert Text({"worker": "100%s"}).format(record("stopped")).endswith("WARNING 100%s: stopped")


SCRIPT = """
import logging, threading, warnings
from zmq_offload.console import logs
logs.start("broker", logs.LogOptions(%r, "json"))
log = logging.getLogger("broker")
log.debug("d"), log.info("i"), log.warning("w"), log.error("e")
logging.getLogger("asyncio").debug("not ours")
warnings.warn("of a library")
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
class Finalized:
    def __del__(self):
        raise KeyError("in a finalizer")
Finalized()
raise RuntimeError("not caught")
"""


@pytest.mark.parametrize(("level", "seen"), [("debug", "diw"), ("warning", "w"), ("error", "")])
def test_the_level_and_what_nobody_catches(level: str, seen: str) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT % level], check=False, capture_output=True, text=True)
    events = [json.loads(line) for line in done.stderr.splitlines()]
    said = [event["message"] for event in events]
    wanted = [*seen, "e"]
    assert said[: len(wanted)] == wanted
    rest = events[len(wanted) :]
    if level != "error":
        assert "UserWarning: of a library" in rest.pop(0)["message"]
    thread, finalizer, program = rest
    assert "KeyError: 'in a finalizer'" in finalizer["exception"] and "Finalized.__del__" in finalizer["message"]
    assert "ZeroDivisionError" in thread["exception"] and "RuntimeError: not caught" in program["exception"]
    assert done.returncode == 1
