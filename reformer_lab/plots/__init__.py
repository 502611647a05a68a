"""One function per picture, by component."""
