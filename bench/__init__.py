"""Measurements against named yardsticks, in one run: `./dev bench`."""
