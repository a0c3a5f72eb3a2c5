"""Teachers that are fitted to the training lists of a store."""
