"""Measurements beside other programs. Timings are never tests."""
