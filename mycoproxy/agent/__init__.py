"""The per-node daemon: configuration, control API, metrics, logs, and its part in the moves."""
