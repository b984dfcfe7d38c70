"""The process that owns one attempt from its claim to its outcome: starts the ranks, watches them, says why they ended."""
