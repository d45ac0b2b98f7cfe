"""What ``netlab bench tcp`` is made of.

Three network namespaces (``places``), the peers of all connections in a process of their own
(``peer``), the target of a handover in another (``target``): source and target are two machines in
earnest, and one process may not have descriptors enough for both ends of 10,000 connections.
"""
