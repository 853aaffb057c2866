"""The pure core: what happens to a run, without I/O, clock or randomness."""
