"""What we ask of the kernel: /proc, cgroups, inotify, child processes. Standard library and psutil only."""
