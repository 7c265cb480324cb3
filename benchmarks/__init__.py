"""Benchmarks: each measures both sides in one run, alternating, and prints medians with their spread."""
