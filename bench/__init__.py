"""Benchmarks: they measure ratios within one run. They are not part of production."""
