"""The policy and reference wrapper, how to build and export it, and attention for packed rows."""
