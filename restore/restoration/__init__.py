"""The road of a picture: inputs, plan, tiles, candidates, output with its record."""
