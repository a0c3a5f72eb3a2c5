"""Reinforcement learning by DAPO: rewards, dynamic sampling and the training run."""
