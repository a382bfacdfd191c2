"""Published methods, as described, that are not recommended: each rests on public seams, and nothing imports it."""
