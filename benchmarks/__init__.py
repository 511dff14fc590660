"""Everything that measures: `launch/benchmark.py` finds it by name. Dated figures are in `results/`."""
