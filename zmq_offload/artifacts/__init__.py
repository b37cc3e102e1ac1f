"""Files that `zmq-offload compile` writes and that workers and devices read: the model repository, the manifest of a
device bundle, and the CPU features that a library needs. No TVM."""
