"""Generate video with Open-Sora on every GPU you own, and see where each GPU's time went."""

__version__ = "0.1.0"
