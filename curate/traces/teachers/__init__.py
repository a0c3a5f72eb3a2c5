"""Teachers: objects that answer a re-ranking request with a completion."""
