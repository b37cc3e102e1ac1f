"""Open files: each client and worker that is connected takes one."""

from __future__ import annotations

import logging
import resource

log = logging.getLogger("broker")

WANTED = 65536
"""As many as the broker's ZeroMQ context takes sockets."""

_OWN = 64
"""What the broker has open itself, by a generous count."""


def raise_file_limit(wanted: int = WANTED) -> int:
    """Let this process have as many files open as it may, up to `wanted`; how many connections that makes.

    Most systems start a process with 1024, which it may raise by itself. A connection over the limit is not refused but
    never answered, so a limit that is low is said here.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        soft = most
    files = wanted if soft == resource.RLIM_INFINITY else min(soft, wanted)
    if files < 4096:
        log.warning(
            "at most %d connections: this process may have %d files open; raise the hard limit (ulimit -Hn, "
            "LimitNOFILE= in a systemd unit, --ulimit nofile= of a container)",
            files - _OWN,
            files,
        )
    return files - _OWN
