"""Estimate costs, fleets, machines and cards from a plan. Pure functions."""
