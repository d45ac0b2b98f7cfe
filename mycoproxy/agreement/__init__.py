"""How the agents of a move come to one outcome: presumed-abort two-phase commit, and its journal."""
