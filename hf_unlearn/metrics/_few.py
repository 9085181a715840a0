"""How few samples tell little of their spread; records are judged by it too, where torch is not loaded."""

FEW = 5
"""Samples, below which drawing them anew tells little."""
