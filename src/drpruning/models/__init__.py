"""Hugging Face model folders: inspected without torch, loaded, written; the memory they take."""
