"""The access log: which requests it has, and that it says what it leaves out."""

from __future__ import annotations

import logging

from zmq_offload.common.accesslog import LONGEST, Access, AccessLog


def access(status: str = "OK", total: float = 0.0, **known: object) -> Access:
    return Access(request="a/1", model="m", version=None, status=status, total=total)._replace(**known)


def test_slow_and_failed_requests_are_logged() -> None:
    log = AccessLog(0.5)
    log.add(access(total=0.4), 1.0)
    assert not log
    log.add(access(total=0.5, version=2, queue=0.25, worker="w", attempts=1, client=""), 1.0)
    log.add(access("CANCELLED"), 1.0)
    slow, failed = log.take()
    assert not log and log.take() == []
    assert slow.level == logging.INFO and failed.level == logging.WARNING
    assert slow.text == "model 'm' version 2: OK request=a/1 total=0.5 queue=0.25 worker=w attempts=1"
    assert slow.fields["total"] == 0.5 and slow.fields["version"] == 2 and "client" not in slow.fields
    assert failed.text == "model 'm': CANCELLED request=a/1 total=0.0"


def test_what_clients_choose_is_bounded_and_cannot_pass_for_other_fields() -> None:
    log = AccessLog(0.0)
    log.add(access(request="x" * 10**6, model="m" * 10**6, client="a worker=w total=0"), 1.0)
    (line,) = log.take()
    assert line.fields["request"] == "x" * LONGEST + "…" and line.fields["client"] == "a worker=w total=0"
    assert len(line.text) < 3 * LONGEST and line.text.endswith("total=0.0 client='a worker=w total=0'")


def test_it_says_how_many_were_left_out() -> None:
    log = AccessLog(0.0, most=2)
    for _ in range(5):
        log.add(access(), 7.1)
    log.add(access(), 8.0)
    *_, said, last = log.take()
    assert said.text.startswith("3 requests were left out") and said.fields == {"left_out": 3}
    assert last.fields["model"] == "m"
    log.flush()
    assert not log
