"""From a request and the facts of model and machine to a Plan, or to all its problems. No torch, files or clock."""
