"""Checks of this machine: facts, checks, the audit of the environment, and a probe of the links."""
