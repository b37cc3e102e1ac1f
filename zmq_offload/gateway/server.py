"""The gateway's process, from its options to its end."""

from __future__ import annotations

import asyncio
import logging
import signal

import uvloop

from zmq_offload.client.connection import Connection
from zmq_offload.common.open_files import raise_file_limit
from zmq_offload.gateway.application import doors
from zmq_offload.gateway.config import Config
from zmq_offload.gateway.control import ModelControl
from zmq_offload.gateway.fabric import BrokerFabric
from zmq_offload.gateway.ports import drain, listen

log = logging.getLogger("gateway")


def serve(config: Config) -> int:
    """Run a gateway in this process until SIGTERM, SIGINT or SIGHUP."""
    raise_file_limit(log)
    uvloop.run(_run(config))
    log.info("stopped")
    return 0


async def _run(config: Config) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup sets this
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
    connection = Connection(
        config.broker, None, config.max_frame_bytes, config.client_key, config.broker_key, reclaims=False
    )
    fabric = BrokerFabric(connection, config.timeout, ModelControl(config.model_control))
    try:
        ports = await listen(doors(config, fabric))
        # A program that starts a gateway with port 0 reads the ports here.
        print("ready", *(f"{port.door.name}={port.address}" for port in ports), flush=True)
        await stop.wait()
        log.info("stopping: finishing %d requests within %.1f s", fabric.outstanding, config.grace)
        fabric.stopping = True
        await drain(ports, config.grace)
    finally:
        fabric.close()
