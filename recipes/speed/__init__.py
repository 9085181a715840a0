"""Parts of `recipes/benchmark_speed.py`."""
