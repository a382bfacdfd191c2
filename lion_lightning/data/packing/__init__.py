"""Documents become packed rows: which share one, and the loader that resumes."""
