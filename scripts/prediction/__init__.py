"""Score the planner with published measurements. Start with `scripts/validate_plan.py`."""
