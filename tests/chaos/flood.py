"""`python -m tests.chaos.flood ENDPOINT N` sends N requests at once, and prints how they ended, as JSON."""

from __future__ import annotations

import json
import sys
from collections import Counter
from concurrent.futures import wait

import numpy as np

from zmq_offload import Client

if __name__ == "__main__":
    endpoint, many = sys.argv[1], int(sys.argv[2])
    with Client(endpoint, timeout=60) as client:
        inputs = {"x": np.zeros(4800), "sleep": np.array(0.005)}
        futures = [client.submit("echo", inputs) for _ in range(many)]
        wait(futures)
        codes = Counter(getattr(future.exception(), "code", None) for future in futures)
    print("flooded", json.dumps({code.value if code else "served": count for code, count in codes.items()}))
