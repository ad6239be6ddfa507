"""One host: the supervisor of its processes, the pool of blanks, the lifecycle of its sprites, and their recovery."""
