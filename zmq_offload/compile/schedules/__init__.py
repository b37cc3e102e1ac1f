"""Schedules for CPUs that need no tuning."""

from zmq_offload.compile.schedules.machine import Machine, machine_of
from zmq_offload.compile.schedules.pipeline import cpu_pipeline

__all__ = ["Machine", "cpu_pipeline", "machine_of"]
