"""How sure a segmentation is, and whether its probabilities hold."""
