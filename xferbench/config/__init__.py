"""Suite files: fields, validation and the expansion of a matrix."""
