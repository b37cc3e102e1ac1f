"""Call a model through a broker, and read how long each part of the call took."""

import os

import numpy as np

from zmq_offload import Client

BROKER = os.environ.get("ZMQ_OFFLOAD_FRONTEND", "tcp://127.0.0.1:5555")

x = np.arange(6, dtype=np.float32).reshape(2, 3)
with Client(BROKER, timeout=5.0) as client:  # seconds; every call has a deadline
    outputs = client.infer("echo", {"x": x})  # a dict of arrays, by name
    print(outputs["x"], outputs.timings)
    futures = [client.submit("echo", {"x": x + i}) for i in range(8)]  # eight calls in flight
    print([float(future.result()["x"].sum()) for future in futures])
