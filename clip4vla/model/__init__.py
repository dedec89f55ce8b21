"""The towers, their fusion and their files."""
