"""What a spec would take: parameters, memory, tokens, steps. Never imports torch."""
