"""From files to masks with a trained model."""
