"""Supervised fine-tuning: the weighted loss, Muon and the training run."""
