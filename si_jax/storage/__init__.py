"""Files: written whole or not at all, with digests, as archives of arrays and as trees."""
