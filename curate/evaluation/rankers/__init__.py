"""Rankers: whatever puts the candidates of a task into a better order."""
