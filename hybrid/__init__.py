"""What pictures and scans share: N-D blocks, and all that loads, tiles, runs and trains a network. Knows neither of them."""
