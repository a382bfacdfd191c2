"""What a trained model is worth: losses, accuracies, win rates, and answers in the formats of the public benchmarks."""
