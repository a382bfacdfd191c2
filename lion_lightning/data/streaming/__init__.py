"""Sources that are read while training: raw blocks, encoded by workers, mixed, packed in windows, dealt to ranks."""
