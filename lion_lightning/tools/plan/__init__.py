"""`lion plan`: memory per GPU and time per step of a config, before any GPU is rented."""
