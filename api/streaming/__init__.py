"""Server-sent events: one feed per process, fanned out to the streams that are open."""
