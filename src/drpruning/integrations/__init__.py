"""Data scheduling and distillation in other trainers; see each module for the library it needs."""
