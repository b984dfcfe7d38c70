"""From text files to batches: sources, tokenizer, dataset, packing, masking, sampler, loader."""
