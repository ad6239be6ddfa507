"""Object storage: one small protocol, the stores that speak it, and one that fails on purpose."""
