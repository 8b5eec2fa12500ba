"""How well the planner predicts published measurements. `scripts/validate_plan.py` is the way in."""
