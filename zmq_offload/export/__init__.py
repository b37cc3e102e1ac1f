"""Model repositories for other inference servers, as `zmq-offload export` writes them."""

from zmq_offload.export.triton import Running
from zmq_offload.export.write import Exported, export_to_triton

__all__ = ["Exported", "Running", "export_to_triton"]
