"""Sprites' URLs: who may open one, how a browser logs in, and where a request goes."""
