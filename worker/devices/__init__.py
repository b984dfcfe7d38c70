"""The accelerators of this host: which there are, what the vendors' tools say about them, which are fit for work."""
