"""The command line: `longyard` over HTTP, and what `./run` starts."""
