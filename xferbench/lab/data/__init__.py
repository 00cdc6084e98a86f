"""Load datasets as arrays and tensors, preprocess them, and augment them. Imports torch."""
