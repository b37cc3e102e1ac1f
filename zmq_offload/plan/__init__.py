"""`zmq-offload plan`: where to cut a model, from measured times and the network.

`costs`, `frontiers`, `mincut`, `rules`, `search` and `report` are pure. `halves` and `confirm` measure.
"""
