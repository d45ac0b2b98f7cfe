"""Connections: capture, re-home and establish live TCP connections.

Imports nothing of ``migrate`` or ``netlab``; knows nothing of CRIU or containers' images.
"""

__version__ = "0.1.0"
