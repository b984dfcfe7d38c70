"""What the figures in the README and in the documentation come from: measured here, in one run, on the machine at hand."""
