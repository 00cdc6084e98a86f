"""The training of one network: its examples, its loop and what changes them."""
