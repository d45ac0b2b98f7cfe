"""Connections under test while one of their ends is moved, again and again.

* `place`, `course`: a client and two places that its server can be at, joined by wires
  (`netlab.wire`) that may lose, double and reorder.
* `ends`: a connection's ends. The server's is a descriptor that stays while what it refers to
  moves, as it is for a task that CRIU restores.
* `move`: one handover from place to place, with the pieces and in the order of
  ``mycoproxy.handover``.
* `battery`: what any connected pair must do.

A server end is used by one thread, the same that moves it: so it stands while it is moved.
"""
