"""Checks of a host: what is wrong on it, why it matters, and the command that mends it."""
