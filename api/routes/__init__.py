"""The routes, one module a noun. Plain functions on threads, but for the streams."""
