"""The gateway: sessions of workers and their streams."""
