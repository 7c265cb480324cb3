"""Our engine beside transformers, vLLM's CPU build and llama.cpp, each in a process and an environment of its own.

``driver`` hands the same token ids to all of them and takes the times; ``serve`` is the part inside each system's
process, ``systems`` are the programs, ``pipeline`` compares whole services instead of engines.
"""
