"""What can be found wrong with a pipeline before its first stage trains."""
