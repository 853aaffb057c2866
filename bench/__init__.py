"""Benchmarks: what a real server does, beside floors taken in the same run. Never tests."""
