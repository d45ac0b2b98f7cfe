"""What an agent does for moves: it plays the source's, the target's and a peer's part of handovers.

``engine.Engine`` has all of them. Other agents' ``requests`` come to it, and the ``acts`` that
``mycoproxy.agreement`` orders; the moves are ``entries``. The parts are ``source``, ``target`` and
``peer``; each holds what ``mycoproxy.handover`` needs in the namespaces of this
node, writes down ahead what another process would have to know to go on, and can be made from
that. ``remote`` is the other nodes' part as seen from the source. Freezing, restoring and killing
tasks is not the agent's business: it gives orders to a ``driver``.
"""
