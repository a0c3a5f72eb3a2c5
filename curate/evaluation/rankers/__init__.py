"""Rankers: objects that put the candidates of a task into a better order."""
