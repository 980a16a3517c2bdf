"""Whether a lower precision is safe and faster here, by one tile."""
