"""The CRIU that moves are made with, and how to start it.

    criu = find_criu()
    subprocess.Popen([criu.path, "swrk", ...], env=criu.environment())

The finder itself is a question about the machine and stands with ``mycoproxy check``.
"""

from mycoproxy.check.criu import CriuBinary, find_criu

__all__ = ["CriuBinary", "find_criu"]
