"""Data scheduling in other trainers; a module needs the library that it is named after."""
