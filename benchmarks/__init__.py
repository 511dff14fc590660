"""Measurements and estimates: what `launch/benchmark.py` calls."""
