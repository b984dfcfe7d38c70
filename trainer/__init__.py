"""The Longformer trainer: one process per rank, which reads config.json and appends to files beside it."""
