"""What a suite names, read and digested without torch."""
