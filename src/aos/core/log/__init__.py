"""The transparency log (docs/spec/15-log.md): notes, checkpoints, leaves, tiles, witnesses, convictions. Pure."""
