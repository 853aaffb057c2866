"""Verifies drivers: starts one, plays the server for it, and judges what it does. See docs/conformance.md."""
