"""Keep calling while one of two brokers is down: `python failover.py tcp://HOST:5555 tcp://OTHER:5555`."""

import sys

import numpy as np

from zmq_offload import Client

BROKERS = sys.argv[1:] or ["tcp://127.0.0.1:5555", "tcp://127.0.0.1:6555"]

with Client(BROKERS, timeout=10.0) as client:  # while one broker is silent, the next one is asked
    for i in range(5):
        outputs = client.infer("echo", {"x": np.array([i])})
        print(f"call {i}: {outputs['x']} after {outputs.timings.total:.3f} s")
