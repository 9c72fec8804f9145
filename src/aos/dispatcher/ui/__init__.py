"""The explorer at ``/ui`` (docs/explorer.md): public facts as server-rendered pages; no cookie, no inline script."""
