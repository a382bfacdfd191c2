"""`lion plan`: estimates of memory per GPU and time per step of a config."""
