"""The command `app`."""
