"""CLIP4VLA: CLIP extended with hearing, from raw media to a promoted model."""

__version__ = "0.1.0"
