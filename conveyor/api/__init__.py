"""The public API: one servicer per service, validation and errors."""
