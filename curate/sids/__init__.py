"""Semantic IDs: turns texts into vectors, vectors into codes and codes into unique IDs, and measures their quality."""
