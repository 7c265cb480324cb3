"""Applications, end to end: the reference's experiments (Parrot, OSDI'24, section 8), ours beside client-side ones."""
