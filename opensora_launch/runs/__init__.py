"""Read a run's folder: what it contains, who works on it, how far it is, and how long it still takes. No torch."""
