"""`lion fit`, `validate` and `test`: LightningCLI with this project's defaults."""
