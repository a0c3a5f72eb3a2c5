"""Endpoints that speak the protocol of OpenAI: addresses, keys and the HTTP client of teachers and embedders."""
