"""A witness of transparency logs: cosigns what continues the tree that it holds (docs/spec/15-log.md, "Witnesses")."""
