"""Methods for semantic IDs that need torch: RQ-VAE and Hugging Face embedders."""
