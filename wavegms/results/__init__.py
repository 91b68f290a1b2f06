"""From masks to scores, statistics and tables; no networks."""
