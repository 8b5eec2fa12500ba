"""Start the ranks of an attempt, watch them, and judge how they ended. No torch."""
