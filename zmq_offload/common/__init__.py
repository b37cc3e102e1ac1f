"""Small helpers that know nothing of models, messages or sockets."""
