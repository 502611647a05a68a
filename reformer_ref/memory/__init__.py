"""How much memory a computation takes: measured, counted or predicted."""
