"""What Hydra checks: the dataclasses behind every YAML file and override."""
