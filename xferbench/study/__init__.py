"""What a study asks of the lab, and what it finds. Pure; holds numbers and codes, no sentences."""
