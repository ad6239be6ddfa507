"""Alembic migrations, shipped with the package. A released one is never changed."""
