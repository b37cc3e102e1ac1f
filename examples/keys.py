"""Call a broker that wants keys: `python keys.py camera-1.key_secret broker.key`.

`zmq-offload keys new camera-1` makes the first file; the broker's operator gives you the second and authorizes yours.
"""

import os
import sys

import numpy as np

from zmq_offload import Client
from zmq_offload.errors import PermissionDenied, Unauthenticated

BROKER = os.environ.get("ZMQ_OFFLOAD_FRONTEND", "tcp://127.0.0.1:5555")

try:
    with Client(BROKER, key=sys.argv[1], broker_key=sys.argv[2]) as client:
        print([model["name"] for model in client.models()])  # the models that the key is for
        print(client.infer("echo", {"x": np.arange(3)})["x"])
except (Unauthenticated, PermissionDenied) as error:
    sys.exit(f"{error.code.value}: {error.message}")
