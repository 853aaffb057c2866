"""NATS JetStream: events to the engine, tickets to drivers, log lines. Of decisions, the store alone is the truth."""
