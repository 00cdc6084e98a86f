"""What is asked of a finished network, one check a file: failure modes whose cures and failures need no training."""
