"""Datasets: interaction logs read, checked, split and stored, or simulated."""
