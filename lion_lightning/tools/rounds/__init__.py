"""``lion rounds``: metrics, samples and plots of the rounds of on-policy sampling."""
