"""Containers and codecs, through PyAV; no other part reads or writes them."""
