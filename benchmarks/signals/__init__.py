"""The signals set: what becomes of recordings, beside general and audio compressors."""
