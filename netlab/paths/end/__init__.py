"""``python -m netlab.paths.end``: a process that holds ends of many connections, and checks them.

It knows nothing of paths: it listens, it dials what it is told to dial, it sends at a bounded rate
what it agreed on with the other end, compares what it receives, and reports. The workload in its
container and the clients around it are all this program, so it uses the standard library only.

It is told what to do over a unix socket, one JSON object in a line each way and a connection for
each: so there is none while a container is dumped, which could not take it along.
"""
