"""Training of picture networks from recipes."""
