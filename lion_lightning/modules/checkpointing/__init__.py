"""What a module's checkpoints hold, and how a run resumes from one."""
