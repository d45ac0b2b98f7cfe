"""Packet marks (SO_MARK, ``meta mark``) that tell our own packets from everybody else's."""

from typing import Final

PLAYED: Final = 0x6D79636F
"""A segment that is played to a namespace's own sockets; a hold lets it pass. "myco" in ASCII, so
that it is unlikely to be anybody else's; it never leaves the loopback it is sent over."""
