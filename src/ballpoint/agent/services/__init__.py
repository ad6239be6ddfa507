"""Services of a sprite: what they are, that they run, what they wrote."""
