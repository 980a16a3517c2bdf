"""The app's tab of evaluation."""
