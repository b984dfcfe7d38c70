"""From a posted spec to a stored job: validation, estimate, batched writes."""
