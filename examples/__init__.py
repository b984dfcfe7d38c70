"""Real input for a first job: English that every CPython carries, and a tokenizer trained on it."""
