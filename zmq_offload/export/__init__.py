"""A model repository of ours as one of another inference server."""
