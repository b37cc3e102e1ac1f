"""Start a broker and a worker for a test of your own program, and put a slow link before them."""

import numpy as np

from zmq_offload import Client
from zmq_offload.testing import Fabric, Link

x = np.zeros(100_000, np.float32)
with Fabric() as fabric:  # or Fabric("dist/repository", workers=2), which serves your models
    with Client(fabric.frontend) as client:
        near = client.infer("echo", {"x": x}).timings.total
    with Link(fabric.frontend, bandwidth="100Mbit", rtt="20ms") as link, Client(link.endpoint) as client:
        far = client.infer("echo", {"x": x}).timings.total
print(f"{x.nbytes} bytes there and back: {near * 1e3:.1f} ms, over the link {far * 1e3:.1f} ms")
