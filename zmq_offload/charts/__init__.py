"""Charts, drawn with matplotlib in one style, and the interactive page of `zmq-offload load`.

Each module has a dataclass for its numbers, which needs no other package, and a function that draws it, which imports
matplotlib or plotly when it is called.
"""
