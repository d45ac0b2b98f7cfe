"""The per-node daemon: configuration, control API, metrics, logs, and what it does for the moves."""
