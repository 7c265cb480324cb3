"""How fast an engine is on this machine: ``parrot-mq bench-engine``."""
