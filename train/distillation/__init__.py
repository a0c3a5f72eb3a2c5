"""On-policy distillation: a student learns from the token probabilities of a better model, on its own answers."""
