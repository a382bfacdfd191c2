"""``python -m lion_lightning.tools.demo OUT``."""

from lion_lightning.tools.demo import main

main()
