"""Networks and checkpoints. Imports torch."""
