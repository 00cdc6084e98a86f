"""The monitor of a user's own training loop. Imports torch."""
