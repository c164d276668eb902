"""A recipe through its stages: preflight, runs, several targets, reference losses, the demo."""
