"""Schedules for CPUs that need no tuning."""

from zmq_offload.schedules.machine import Machine, machine_of

__all__ = ["Machine", "machine_of"]
