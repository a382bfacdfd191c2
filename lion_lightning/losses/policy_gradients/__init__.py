"""Policy gradients: losses of a group of the policy's own answers, by their rewards."""
