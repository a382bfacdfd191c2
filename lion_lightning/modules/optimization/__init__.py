"""The optimizer step: schedules, gradients, run length, and checks of settings."""
