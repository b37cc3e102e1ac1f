"""Schedules for CPUs that need no tuning."""

from zmq_offload.compile.schedules.machine import Machine, host_target, machine_of, target_features
from zmq_offload.compile.schedules.pipeline import cpu_pipeline

__all__ = ["Machine", "cpu_pipeline", "host_target", "machine_of", "target_features"]
