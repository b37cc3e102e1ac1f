"""What all programs share at a terminal: options, environment variables, Ctrl-C, exit codes, tables, progress."""
