"""The server under the app: accounts, guard, audit, jobs, work spaces."""
