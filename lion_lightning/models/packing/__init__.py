"""Packed rows through models that are more than attention: modules that run sequence by sequence, and probes."""
