"""The server: configuration, composition and the command line."""
