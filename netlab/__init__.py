"""Nodes, links, pods and services on one machine, and scenarios that move pods under load."""
