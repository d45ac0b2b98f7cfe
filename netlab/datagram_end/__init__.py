"""A workload that speaks UDP, in every way that a move has to think of; see ``__main__``."""
