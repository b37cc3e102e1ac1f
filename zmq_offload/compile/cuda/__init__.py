"""Code for NVIDIA's GPUs: targets by name, the pipeline, and NVRTC, which compiles without a GPU."""
