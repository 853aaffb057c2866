"""Log lines of runs: stored in order, read back whole, or with a mark where some are missing."""
