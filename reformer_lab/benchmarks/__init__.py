"""Side-by-side measurements: this package, other people's Reformers, and dense attention, each in its own process."""
