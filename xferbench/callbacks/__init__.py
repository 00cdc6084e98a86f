""":func:`xferbench.watch` for loops that are not the user's own: one module for each trainer, imported by its users alone."""
