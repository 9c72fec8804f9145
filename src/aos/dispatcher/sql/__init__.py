"""Migrations of the dispatcher's database, and the schema that they make (``schema.sql``)."""
