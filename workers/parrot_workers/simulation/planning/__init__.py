"""Capacity planning: which engines does a load need? Behind ``parrot-mq simulate``."""
