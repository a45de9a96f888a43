"""What Alembic runs a migration in: the connection and the transaction of the caller, ``database.migrate``."""

from alembic import context

from chatserver.sessions.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
