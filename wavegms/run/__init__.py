"""What the pipeline and the command line start."""
