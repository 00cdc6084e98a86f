"""Callbacks that run :func:`xferbench.watch` inside a trainer, one module for each library. Each module imports its library."""
