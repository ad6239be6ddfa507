"""Sprites that run: started, adopted, kept awake, put to sleep."""
