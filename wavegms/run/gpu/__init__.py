"""`python -m wavegms gpu`: tests, benchmark and the paper's training within minutes of one card."""
