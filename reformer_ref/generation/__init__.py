"""From a trained model to new tokens."""
