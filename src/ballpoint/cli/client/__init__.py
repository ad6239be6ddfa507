"""Commands that use a node through its HTTP API, and know nothing else of it."""
