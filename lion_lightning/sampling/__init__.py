"""What generates answers."""
