"""Datasets, splits, removal requests and batches."""
