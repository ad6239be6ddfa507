"""The command line: `client/` speaks HTTP like any other client, `host/` runs a node on this machine."""
