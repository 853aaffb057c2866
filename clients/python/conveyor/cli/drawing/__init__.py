"""Draws pipelines."""
