"""Where groups of fits are computed."""
