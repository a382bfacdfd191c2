"""Generation from a policy in training, and the policy as samplers want it."""
