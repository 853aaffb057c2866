"""The one place that states the version; both distributions read it at build time."""

VERSION = "0.1.0"
