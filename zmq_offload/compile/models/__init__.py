"""Model files of each format behind one front door: `read.read_model`."""
