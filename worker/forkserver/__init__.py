"""The fork server: a small process that has imported everything once and forks a supervisor in milliseconds."""
