"""Learning algorithms as pure functions, without a place in a hierarchy."""
