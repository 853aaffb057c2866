"""The engine: takes events in, asks the core, commits, and dispatches."""
