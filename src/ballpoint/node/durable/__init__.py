"""Disks that outlive their host: saved to the store, brought back from it, forked; and what it needs no longer."""
