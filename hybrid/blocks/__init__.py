"""The N-D blocks that networks are made of: one family of blocks a file, 2-D and 3-D where the maths is."""
