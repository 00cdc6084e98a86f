"""One file for each failure mode; they are found through the entry-point group ``xferbench.plugins``."""
