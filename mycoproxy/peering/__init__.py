"""The protocol that agents speak with each other: mutual TLS 1.3, msgpack frames."""
