"""The registry: what is true of organizations, tokens, sprites and their events, in one relational database."""
