"""Clips in Lance: a manifest becomes rows of frames, sound and sentences; a seeded sampler reads them back."""
