"""The volume log: what is kept of a disk in object storage (docs/volume-format.md)."""
