"""Traces: what a run samples, how answers are recorded, and the rules that accept or reject them."""
