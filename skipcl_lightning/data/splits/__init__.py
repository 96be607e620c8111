"""What is held out for validation and test."""
