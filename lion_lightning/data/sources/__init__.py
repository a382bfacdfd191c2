"""Where raw rows come from: files, saved data sets, the hub."""
