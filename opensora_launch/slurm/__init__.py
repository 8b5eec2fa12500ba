"""Slurm: batch scripts, queries, allocations, and the environment of a task."""
