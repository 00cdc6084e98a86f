"""Train one network: its examples, the training loop, regularizers and user code. Imports torch."""
