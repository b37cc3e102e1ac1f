"""Small helpers without a domain: they know nothing of models, messages or sockets."""
