"""Methods that others may have rights to: read NOTICE.md first. Nothing of it is in the wheel."""
