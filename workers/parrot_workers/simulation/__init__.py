"""The whole pipeline in one process and in virtual time, with engines that cost what a profile says."""
