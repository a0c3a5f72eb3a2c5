"""Semantic IDs: texts to vectors, vectors to codes, codes to IDs that nobody shares, and what such IDs are worth."""
