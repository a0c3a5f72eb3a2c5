"""Semantic-ID methods that need torch: RQ-VAE and Hugging Face embedders."""
