"""Container state: freeze, dump, restore, and the migration's own state machine.

Knows no TCP: a connection is a (task, descriptor) that it hands to ``mycoproxy``.
"""
