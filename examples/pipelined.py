"""Run a device bundle on a stream of items, with several in flight: `python pipelined.py dist/device`."""

import os
import sys

import numpy as np

import zmq_offload

BROKER = os.environ.get("ZMQ_OFFLOAD_FRONTEND", "tcp://127.0.0.1:5555")

with zmq_offload.load(sys.argv[1], broker=BROKER) as model:
    random = np.random.default_rng(0)
    items = (random.random(model.inputs[0].shape, "float32") for _ in range(16))  # a camera's pictures, say
    # Device, network and workers are busy at once; the results come in the order of the items.
    for number, y in enumerate(model.map(items, depth=4)):
        print(number, y.shape, y.ravel()[:3])
