"""Protocol buffers of other servers: the definitions of their messages, and numbers as bytes."""
