"""Call a model from asyncio: many calls in flight at once."""

import asyncio
import os

import numpy as np

from zmq_offload import AsyncClient

BROKER = os.environ.get("ZMQ_OFFLOAD_FRONTEND", "tcp://127.0.0.1:5555")


async def main() -> None:
    async with AsyncClient(BROKER) as client:
        calls = [client.infer("echo", {"x": np.full(3, i, np.float32)}) for i in range(8)]
        print([outputs["x"].tolist() for outputs in await asyncio.gather(*calls)])


asyncio.run(main())
