"""How long each script holds Redis, at the sizes that we promise."""
