"""`lion rounds`: what happened in the rounds of on-policy sampling."""
