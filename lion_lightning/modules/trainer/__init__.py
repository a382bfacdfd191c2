"""A Trainer's batches outside of its loops, and how its weights are split over ranks."""
