"""The ColossalAI engine: its tensor and sequence parallelism around this project's networks.

It is imported only for engine=colossalai. doctor/engine_packages.py checks, without importing it, whether it can be.
"""
