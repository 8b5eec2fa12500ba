"""From a command line to a run that can start: Hydra, flags, prompts, checks, resume."""
