"""The commands of ``lion`` that LightningCLI has not: one module each, with ``main(arguments)``."""
