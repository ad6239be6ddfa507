"""How an instance is isolated. `container` shares the host's kernel; each runtime publishes its capabilities."""
