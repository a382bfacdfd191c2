"""CodeGen2: models that write on and fill holes."""
