"""Embeds item texts and co-purchases as vectors, which the quantizers turn into codes."""
