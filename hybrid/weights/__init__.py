"""Files of weights: what is known, where it is had, how a foreign file is read safely."""
