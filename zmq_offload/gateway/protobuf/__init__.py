"""Protocol buffers: definitions, a reader and a writer of the fields around large tensors."""
