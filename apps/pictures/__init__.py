"""The app's tab of pictures."""
