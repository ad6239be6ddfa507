"""Volumes: a sprite's durable disk, an ext4 image in a pool whose files can share extents."""
