"""Teachers: whatever answers a re-ranking request with a completion."""
