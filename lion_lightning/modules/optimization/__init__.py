"""What an optimizer step is made of: schedules, gradients, run length and limits."""
