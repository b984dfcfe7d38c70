"""The typed training spec, its presets and the shape of the model it asks for. Never imports torch."""
