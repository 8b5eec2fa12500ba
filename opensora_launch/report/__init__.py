"""Events of a run to where its time went, how well its ranks were used, and the files that say so. No torch."""
