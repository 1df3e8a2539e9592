"""Hierarchies and flat agents on tasks with longer and longer horizons."""
