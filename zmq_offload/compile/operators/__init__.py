"""What TVM's ONNX importer gets wrong: each operator is converted right, or refused by name."""
