"""Commands that run a node on this machine."""
