"""What modules ask of a Trainer beyond its own loops: batches, and how weights are split over ranks."""
