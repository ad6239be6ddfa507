"""Commands in a sprite: their processes, their streams, and who watches them."""
