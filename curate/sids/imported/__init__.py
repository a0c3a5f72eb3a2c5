"""Semantic IDs and vectors that somebody made elsewhere, read from a file."""
