"""Between a disk here and its log in the store."""
