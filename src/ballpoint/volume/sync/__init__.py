"""Between a disk and its log: what changed goes up, what is missing comes down."""
