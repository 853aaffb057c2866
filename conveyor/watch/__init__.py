"""The watch hub: every change of every run, to whoever subscribed."""
