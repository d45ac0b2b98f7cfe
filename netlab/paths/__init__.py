"""Every path that a client can come by, and every one the workload itself goes out by, at once.

``table`` has the paths as data. ``end`` is a program of the standard library alone that holds ends
of connections and checks every byte: one process of it for each place in the lab, and one as the
workload, in a container. ``clients.PathClients`` starts them in a lab of topology ``kube-service``,
opens a connection for each path, IP version and activity, and tells how each of them fared.

    clients = PathClients(lab)
    clients.start()
    clients.wait_until_open(30)
    ...                                 # move the pod
    results = clients.finish()
"""
