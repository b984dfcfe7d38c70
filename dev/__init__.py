"""What only a checkout needs: the installer behind `./run`, the demo, the checks, the web build."""
