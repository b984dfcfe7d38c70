"""Everything durable that the API and the workers must agree on: the only room with SQL."""
