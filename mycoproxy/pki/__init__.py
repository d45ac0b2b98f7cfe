"""Certificates: a cluster's authority, and one identity for each node."""
