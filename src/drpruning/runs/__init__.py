"""The run folder: its paths, its records, and what can be read off it; never imports torch."""
