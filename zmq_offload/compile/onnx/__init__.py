"""ONNX files: read, given shapes, simplified, and imported into Relax."""
