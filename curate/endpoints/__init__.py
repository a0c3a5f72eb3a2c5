"""Endpoints with OpenAI's protocol: addresses, keys and the HTTP client of teachers and embedders."""
