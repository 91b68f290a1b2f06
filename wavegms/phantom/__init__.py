"""The embedded sample: simulated ultrasound scanners."""
