"""Datasets as tensors. Imports torch."""
