"""A program for each system; each runs in that system's environment and speaks the protocol of ``serve``."""
