"""The operations in C++, compiled at first use for the CPU at hand."""
