"""What a network costs: parameters, operations, time and memory (Table 1)."""
