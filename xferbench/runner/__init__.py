"""Runs, gates and matrices: everything with side effects."""
