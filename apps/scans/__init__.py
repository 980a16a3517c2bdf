"""The app's tab of scans."""
