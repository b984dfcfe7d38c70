"""Reads what the ranks write and stores it: metrics, logs, progress, checkpoints."""
