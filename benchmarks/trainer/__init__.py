"""`bench trainer`: our trainer against stock transformers, in turns in one run."""
