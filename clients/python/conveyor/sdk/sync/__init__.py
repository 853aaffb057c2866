"""The client for programs without an event loop; `calls` apart, its modules are derived from the asyncio client's."""
