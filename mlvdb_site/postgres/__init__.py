"""PostgreSQL as the database of a node, by DATABASE_URL: a Django database backend, named in the settings."""
