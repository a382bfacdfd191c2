"""`lion harness`: a model on tasks of lm-evaluation-harness."""
