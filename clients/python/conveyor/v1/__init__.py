"""The public API: generated from proto/conveyor/v1."""
