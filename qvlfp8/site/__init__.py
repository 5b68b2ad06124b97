"""The static site: what records say, as pages that open from disk. View data first, then files."""
