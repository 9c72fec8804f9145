-- Whether the operator takes part in draws: a person's decision, which a restart does not undo.
ALTER TABLE node_state ADD COLUMN draining boolean NOT NULL DEFAULT false;
