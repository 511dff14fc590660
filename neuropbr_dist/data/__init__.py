"""Samples to batches: which set is meant (`open`), its files, packed or built in, their order, and the way to the device."""
