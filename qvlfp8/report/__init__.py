"""Views: progress while a run goes on, and the compatibility matrix; all derived from records."""
