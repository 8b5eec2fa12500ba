"""Costs, fleets, builds and cards, reckoned from a plan. Pure functions."""
