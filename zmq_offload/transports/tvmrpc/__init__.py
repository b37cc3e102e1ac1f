"""TVM's own RPC server as a transport: `tvmrpc://HOST:PORT`.

`wire` is TVM's protocol as bytes, `connecting` begins a session, perhaps by a tracker, `session` has one connection
with calls in flight, `parcel` puts a request of ours into the argument of one packed function, and `transport` makes
the calls. On the other side are `server`, the program, `service`, which runs requests, and `direct`, which makes that
fast.
"""
