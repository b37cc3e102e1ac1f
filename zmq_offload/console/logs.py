"""The log of a program: one line an event on stderr, as text or as JSON.

A program calls `add_log_options` for its parser, and `start` before its work begins. An event about a request has
fields of its own: `log.info(text, extra=fields(request=..., model=...))`.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from collections.abc import Mapping
from datetime import datetime, timezone
from types import TracebackType
from typing import NamedTuple

from zmq_offload.common.accesslog import AccessLog
from zmq_offload.console.parser import Parser
from zmq_offload.console.settings import add_option, checked
from zmq_offload.errors import printable

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")

OWN = ("broker", "workers", "gateway", "zmq_offload")
"""The loggers of this project. Only they log at the level debug: other libraries would drown them."""

_threshold = checked(float, lambda s: 0 <= s < 1e6, "a time in seconds, from 0 to a million")
_level = checked(str, lambda text: text in LEVELS, "a level: debug, info, warning or error")
_format = checked(str, lambda text: text in FORMATS, "a format: text or json")


class LogOptions(NamedTuple):
    """The options of `add_log_options`."""

    level: str = "info"
    format: str = "text"


DEFAULT = LogOptions()


def add_log_options(parser: Parser) -> None:
    """Add `--log-level` and `--log-format`."""
    levels = "debug|info|warning|error"
    add_option(parser, "--log-level", _level, "info", f"least level of the log, {levels}", metavar="LEVEL")
    add_option(parser, "--log-format", _format, "text", "a line of text or an object of JSON", metavar="text|json")


def add_access_log(parser: Parser) -> None:
    """Add `--access-log`."""
    help = "log requests that fail, or take so many seconds; 0: all"
    add_option(parser, "--access-log", _threshold, None, help, metavar="S")


def write(access: AccessLog, log: logging.Logger) -> None:
    """Write the requests of an access log as events of `log`."""
    for level, text, known in access.take():
        log.log(level, "%s", text, extra=fields(**known))


def start(program: str, options: LogOptions, common: Mapping[str, object] | None = None, descriptor: int = 2) -> None:
    """Log to stderr, or to another `descriptor`, as `options` say.

    Python's warnings and errors that nobody catches are events of the log, too. `common` are fields of all events.
    """
    handler: logging.Handler
    if descriptor == 2:
        handler = logging.StreamHandler()
    else:
        handler = logging.StreamHandler(open(descriptor, "w", buffering=1, errors="backslashreplace"))  # noqa: SIM115
    formatter = Json(program, common or {}) if options.format == "json" else Text(common or {})
    handler.setFormatter(formatter)
    level = getattr(logging, options.level.upper())
    logging.basicConfig(level=max(level, logging.INFO), handlers=[handler], force=True)
    for name in OWN:
        logging.getLogger(name).setLevel(level)
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread
    sys.unraisablehook = _unraisable


def fields(**known: object) -> dict[str, object]:
    """The `extra` of an event with these fields. Those that are None are left out."""
    return {"fields": {name: value for name, value in known.items() if value is not None}}


class Text(logging.Formatter):
    """Time, logger, level and message. An exception follows on the same line, with its line ends as `\\n`.

    Several processes may write the same log, so a message begins with the `process` or `worker` of `common`.
    """

    def __init__(self, common: Mapping[str, object] | None = None) -> None:
        known = common or {}
        which = f"process {known['process']}" if "process" in known else str(known.get("worker", ""))
        which = which.replace("%", "%%") + ": " if which else ""
        super().__init__(f"%(asctime)s %(name)s %(levelname)s {which}%(message)s")

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


class Json(logging.Formatter):
    """An object with `time`, `level`, `program`, `logger`, `pid`, `message`, and the fields of the event."""

    def __init__(self, program: str, common: Mapping[str, object]) -> None:
        super().__init__()
        self._program, self._common = program, common

    def format(self, record: logging.LogRecord) -> str:
        event: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="microseconds")[:-6] + "Z",
            "level": record.levelname.lower(),
            "program": self._program,
            "logger": record.name,
            "pid": os.getpid(),
            "message": record.getMessage(),
            **self._common,
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        # ASCII only: no text of a peer can hold a line end or what a terminal takes for a command.
        return json.dumps(event, default=str)


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, Exception):
        logging.getLogger("zmq_offload").critical("the program fails", exc_info=(kind, error, trace))
    else:
        sys.__excepthook__(kind, error, trace)


def _uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is not SystemExit and args.exc_value is not None:
        name = args.thread.name if args.thread is not None else "?"
        log = logging.getLogger("zmq_offload")
        log.critical("the thread %s fails", name, exc_info=(args.exc_type, args.exc_value, args.exc_traceback))


def _unraisable(args: sys.UnraisableHookArgs) -> None:
    """An error where nobody could catch it: in a finalizer, or in a callback that C code calls."""
    log, error = logging.getLogger("zmq_offload"), args.exc_value
    caught = None if error is None else (args.exc_type, error, args.exc_traceback)
    log.error("%s: %r", args.err_msg or "an error is ignored in", args.object, exc_info=caught)
