"""Contestants that hf_xmc is measured beside."""
