"""The Python SDK: semantic functions, semantic variables, sessions. Its public names are those of ``parrot_mq``."""
