"""Evaluation: ranks the same lists with several rankers, and computes their metrics and intervals."""
