"""Estimates, decisions and comparisons: from records to verdicts. Pure; holds numbers and codes, no sentences."""
