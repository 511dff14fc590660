"""Files to batches: layout, decoding, order of samples, packed sets, built-in materials."""
