"""The dataclasses against which Hydra checks every YAML file and override."""
