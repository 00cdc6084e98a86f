"""The functions that worker processes are asked to call. Imports torch."""
