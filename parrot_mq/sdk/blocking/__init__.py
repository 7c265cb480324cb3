"""The SDK for synchronous programs: the same things, blocking. Its public names are those of ``parrot_mq.sync``."""
