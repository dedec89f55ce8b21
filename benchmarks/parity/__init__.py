"""Parity with the published CLIP4VLA: our code against numbers that the authors' code computed."""
