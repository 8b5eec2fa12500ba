"""The reader of a run's folder: what is there, who works on it, and how far it is."""
