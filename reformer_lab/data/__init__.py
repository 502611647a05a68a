"""Tasks to train on, each a plain function from (seed, step) to a batch of tokens."""
