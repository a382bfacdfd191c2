"""`lion evaluate`: losses, accuracies, win rates and confidence intervals of trained models."""
