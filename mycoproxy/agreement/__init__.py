"""How the agents of a move come to one outcome: a presumed-abort two-phase commit, its journal."""
