"""Engines as data: what a model on a machine costs and holds, and where each number comes from."""

from parrot_workers.simulation.profiles.profile import Profile, load_profile, profile_names

__all__ = ["Profile", "load_profile", "profile_names"]
