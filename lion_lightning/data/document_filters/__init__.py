"""Rules that leave out training examples by what they say, such as decontamination."""
