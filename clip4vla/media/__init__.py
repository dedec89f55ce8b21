"""Containers and codecs, through PyAV; nothing else in the package knows them."""
