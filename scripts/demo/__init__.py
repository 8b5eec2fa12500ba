"""How the demo model is made and measured: clips, judge, training stages. Not part of the package."""
