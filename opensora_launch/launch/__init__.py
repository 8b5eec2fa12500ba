"""A plan becomes a run directory and the processes that make its videos, started and watched. No torch."""
