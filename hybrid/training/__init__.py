"""The one training loop and what it keeps: recipes, state, record, several processes."""
