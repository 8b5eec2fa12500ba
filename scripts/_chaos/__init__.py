"""What scripts/chaos does. This is not part of the package."""
