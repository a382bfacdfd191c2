"""``python -m lion_lightning.demo OUT``."""

from lion_lightning.demo import main

main()
