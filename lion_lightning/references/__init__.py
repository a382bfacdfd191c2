"""References that a policy is compared with: frozen, adapters off, mixed, or cached log-probs on disk."""
