"""The command `conveyor`."""
