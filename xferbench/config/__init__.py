"""Suite files: fields, validation and the expansion of a matrix. Reads suite files and entry points."""
