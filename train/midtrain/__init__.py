"""Mid-training: the task mix and the training run."""
