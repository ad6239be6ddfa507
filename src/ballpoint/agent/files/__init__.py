"""The files of a sprite, over HTTP and WebSocket (contract 2.6): every look at one is a helper process of its own."""
