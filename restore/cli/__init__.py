"""The command `restore`: one file for each sub-command."""
