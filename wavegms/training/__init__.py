"""Losses, the recipe, the loop and what it leaves behind."""
