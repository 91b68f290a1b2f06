"""What this room brings to the command line, a module each."""
