"""The schema's history. Alembic makes the tables; the application never calls create_all."""
