"""Pure tensor code, without Lightning: log-probs of targets, attention for packed rows, recomputation."""
