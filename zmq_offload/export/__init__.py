"""Repositories for other servers and images of devices, as `zmq-offload export` and `zmq-offload image` write them."""

from zmq_offload.export.image import Image, write_image
from zmq_offload.export.triton import Running
from zmq_offload.export.write import Exported, export_to_triton

__all__ = ["Exported", "Image", "Running", "export_to_triton", "write_image"]
