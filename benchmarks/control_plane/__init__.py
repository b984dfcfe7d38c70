"""`bench plane`: submissions, launches, stops, lists, metrics, memory, measured on a plane of its own."""
