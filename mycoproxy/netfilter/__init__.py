"""What the kernel's packet filter does for a move: hold, shield, and re-home a connection's path.

Everything here is synchronous, and runs on the thread that lives in the network namespace in
question (``mycoproxy.namespaces.NamespaceWorker``)::

    nft = worker.call(Nft)
    hold = Hold(nft, "move-7")
    worker.call(hold.install)              # ahead of the freeze
    worker.call(hold.hold, connections)    # in the handover
    worker.call(hold.release)

``paths.choose_path`` says what a node has to do for a connection: ``rebind`` its conntrack entry,
``translate`` it for a client that lives there, ``admit`` it to a firewall, or nothing.
"""
