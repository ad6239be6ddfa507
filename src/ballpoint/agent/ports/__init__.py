"""The sprite's ports: connections made from inside it, and what listens there."""
