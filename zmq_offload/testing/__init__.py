"""A broker, workers and a slow network on this machine, started from Python: for the demo, for `plan`, and for tests of
programs that use this library."""
