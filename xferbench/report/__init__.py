"""What is written out of a finished run: one output format per file."""
