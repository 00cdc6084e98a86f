"""The functions that worker processes call by name. Imports torch."""
