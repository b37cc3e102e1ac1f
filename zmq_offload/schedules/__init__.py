"""Schedules for CPUs that need no tuning. docs/schedules.md explains the rules.

`simplify`, `layout` and `exact` rewrite Relax operators; `schedule` chooses a rule for each fused function. The package
imports TVM, NumPy and nothing else.
"""

from zmq_offload.schedules.machine import Machine, machine_of

__all__ = ["Machine", "machine_of"]
