"""Candidate lists: the pre-ranker that makes them, and the evidence that links each candidate to its history."""
