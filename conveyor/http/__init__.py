"""The API over plain HTTP, in JSON."""
