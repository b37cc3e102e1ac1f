"""A transport in a package of its own."""
