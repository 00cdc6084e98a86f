"""Value types and errors that everything else may import. Pure."""
