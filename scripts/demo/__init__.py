"""Make and measure the demo model: clips, judge, training stages. This is not part of the package."""
