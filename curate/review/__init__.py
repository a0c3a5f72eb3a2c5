"""Review: the data that people look at and decide on, as plain functions that return rows. The app draws them."""
