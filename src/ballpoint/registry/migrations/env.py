"""Alembic's environment: runs on the connection that `registry.database` hands over, inside its transaction."""

from alembic import context

from ballpoint.registry.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
