"""Contrastive losses that are exact over all ranks."""
