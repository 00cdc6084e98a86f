"""The trials that a study requests, and its findings as numbers and codes without sentences. Pure."""
