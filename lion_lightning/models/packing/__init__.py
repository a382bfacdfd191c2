"""Models on packed rows: their base, modules that run sequence by sequence, and probes."""
