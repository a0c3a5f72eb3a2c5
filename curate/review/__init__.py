"""Review: what people look at and decide, as plain functions that return rows. The app draws them."""
