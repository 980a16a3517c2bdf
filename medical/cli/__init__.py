"""The command `medical`: one file for each sub-command."""
