"""The stored state: keys, codec, runs and the objects that users write."""
