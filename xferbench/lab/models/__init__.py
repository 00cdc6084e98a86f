"""Build networks, and read and write checkpoints. Imports torch."""
