"""A page to search an index with: by a sentence, or by a sound, a picture or a video."""
