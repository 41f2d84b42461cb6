"""Programs that start the same command on many hosts, and what every program's `main` shares."""
