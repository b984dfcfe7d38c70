"""Longformer's sliding window attention: one interface, an implementation per device."""
