"""The HTTP face of the control plane: validates, stores, shows. It never talks to a worker; the database is between them."""
