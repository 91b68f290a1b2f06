"""Datasets: how published files become prepared folders, and those become tensors."""
