"""The command line, one module for each command. Only here are arguments parsed and results printed."""
