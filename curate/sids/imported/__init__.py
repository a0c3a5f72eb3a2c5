"""Imports semantic IDs and item vectors that were made elsewhere, from a file."""
