"""Passes that split a Relax module into a device's module and subgraphs: a BYOC backend named "zmq_offload".

A module goes through these steps:

1. Regions become functions marked for the backend: by tensor names (`graph`, `region`, `outline`; `cut` for Relax
   variables) or by patterns (`partition`).
2. `wire` adds operators to both sides that encode the boundary tensors (`encoding`).
3. `codegen` takes the marked functions out as subgraphs and leaves one packed call for each in the device's module.
4. While the device's module is compiled, `overlap` splits these calls into a send and a receive where other work can
   run between them (`order`).

`zmq_offload.device` runs the result.
"""
