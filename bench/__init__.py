"""Measures, as ratios within one run. No part of production."""
