"""Curation: from interaction logs to verified traces and snapshots of them. It knows no torch and no screen."""
