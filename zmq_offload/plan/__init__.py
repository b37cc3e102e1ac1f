"""`zmq-offload plan`: where to cut a model, from measured times and the network.

`costs`, `cover`, `frontiers`, `links`, `mincut`, `rules`, `search` and `report` are pure. The others measure.
"""
