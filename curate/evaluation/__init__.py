"""Evaluation: rankers on the same lists, their metrics and intervals."""
