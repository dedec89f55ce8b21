"""Atomic files, hashing, progress and process supervision: nothing here depends on clips or models."""
